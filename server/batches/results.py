"""What comes of a batch: a line for each of its requests, and the two files that they are written to, in OpenAI's shape."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import msgspec

from server.batches.file_store import FileStore, NewFile, insert_file
from server.batches.line_book import LineBook
from server.batches.records import Outcome, StoredBatch, StoredFile, new_id

Fault = Literal["none", "busy", "broken"]
OUTCOMES: tuple[Outcome, Outcome] = ("completed", "failed")
_EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LineAnswer:
    """What a request of a batch was answered.

    Attributes:
        status: as of HTTP.
        body: JSON.
        request_id: under which the server's log knows it.
        fault: whose it is that there is no result: nobody's or the request's (`none`), that of a server which was `busy`, or that
            of one which is `broken`.
    """

    status: int
    body: bytes
    request_id: str
    fault: Fault = "none"


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

    async def write(self, batch: StoredBatch, now: int, kept: ExitStack) -> list[tuple[StoredFile, NewFile]]:
        """Write what has ended, and for a batch that has expired what has not. A file without a line is none.

        Args:
            batch: with the ids of its files; those of files that are none become None.
            now: the time.
            kept: what is written is gone when this ends, unless it was kept.
        """
        found = []
        for outcome in OUTCOMES:
            file_id = batch.output_file if outcome == "completed" else batch.error_file
            assert file_id is not None
            written = kept.enter_context(self._files.begin(file_id, promised=True))
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
        if outcome == "failed" and batch.end == "expired":
            after = -1
            while left := await self._lines.left(batch, after):
                after = left[-1][0]
                yield b"".join(_line(custom_id, None, _EXPIRED) for _, custom_id in left)


def add_files(rows: sqlite3.Connection, files: list[StoredFile]) -> None:
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
