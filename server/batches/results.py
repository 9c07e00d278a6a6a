"""What comes of a batch: a line for each of its requests, and the two files that they are written to, in OpenAI's shape."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import msgspec

from server.batches.answers import LineAnswer
from server.batches.file_store import FileStore, NewFile, insert_file
from server.batches.line_book import LineBook
from server.batches.records import BatchEnd, Outcome, StoredBatch, StoredFile, new_id

if TYPE_CHECKING:
    import sqlite3

OUTCOMES: tuple[Outcome, Outcome] = ("completed", "failed")
# What is said of lines that never ended, by the end of their batch.
_LEFT: dict[BatchEnd, dict[str, str]] = {
    "expired": {
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired.",
    },
    "failed": {"code": "batch_failed", "message": "The server failed on this batch before this request had ended."},
}


def result_line(custom_id: str, answer: LineAnswer) -> bytes:
    """The line of a request that was answered."""
    response = {"status_code": answer.status, "request_id": answer.request_id, "body": msgspec.Raw(answer.body)}
    return _line(custom_id, response, None)


def _line(custom_id: str, response: dict[str, object] | None, error: dict[str, str] | None) -> bytes:
    fields = {"id": new_id("batch_req"), "custom_id": custom_id, "response": response, "error": error}
    return msgspec.json.encode(fields) + b"\n"


class Results:
    """Writes the files of batches."""

    def __init__(self, files: FileStore, lines: LineBook) -> None:
        self._files = files
        self._lines = lines

    async def write(self, batch: StoredBatch, now: int, kept: AsyncExitStack) -> list[tuple[StoredFile, NewFile]]:
        """Write what has ended, and for a batch that has expired or failed what has not. A file without a line is none.

        Args:
            batch: with the ids of its files; those of files that are none become None.
            now: the time.
            kept: what is written is gone when this ends, unless it was kept.
        """
        found = []
        for outcome in OUTCOMES:
            file_id = batch.output_file if outcome == "completed" else batch.error_file
            assert file_id is not None
            written = await kept.enter_async_context(self._files.begin(file_id, promised=True))
            async for part in self._parts(batch, outcome):
                await written.write(part)
            if written.size:
                await written.close()
                found.append((_stored(batch, file_id, outcome, written, now), written))
            elif outcome == "completed":
                batch.output_file = None
            else:
                batch.error_file = None
        return found

    async def _parts(self, batch: StoredBatch, outcome: Outcome) -> AsyncIterator[bytes]:
        after = -1
        while ended := await self._lines.answers(batch, outcome, after):
            after = ended[-1][0]
            yield b"".join(answer for _, answer in ended)
        if outcome == "failed" and batch.end in _LEFT:
            after = -1
            while left := await self._lines.left(batch, after):
                after = left[-1][0]
                yield b"".join(_line(custom_id, None, _LEFT[batch.end]) for _, custom_id in left)


def add_files(rows: "sqlite3.Connection", files: list[StoredFile]) -> None:
    """Know these, within a transaction."""
    for file in files:
        insert_file(rows, file)


def _stored(batch: StoredBatch, file_id: str, outcome: Outcome, written: NewFile, now: int) -> StoredFile:
    name = "output" if outcome == "completed" else "errors"
    return StoredFile(
        id=file_id,
        owner=batch.owner,
        purpose="batch_output",
        name=f"{batch.id}_{name}.jsonl",
        bytes=written.size,
        created=now,
        expires=now + batch.output_seconds,
    )
