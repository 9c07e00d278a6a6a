"""One batch on its way from its input file to its results, over any number of servers' lives.

    validating -> in_progress -> finalizing -> completed
        |              |             ^-----------> expired
        v              v
      failed       cancelling --------------> cancelled

Every step ends with one transaction, and begins anew in a server that finds it unfinished: the file is checked again, lines that
have not ended are run again, results are written again. So a kill at any moment costs time, and neither loses a line nor has it
twice.
"""

import asyncio
import contextlib
import itertools
import logging
import random
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from server.batches.batch_book import BatchBook
from server.batches.file_store import FileStore
from server.batches.input import InputRules, read_input, request_of
from server.batches.line_book import LineBook, OpenLine, drop_lines
from server.batches.records import BatchEnd, LineError, Outcome, StoredBatch, StoredFile, new_id
from server.batches.results import LineAnswer, Results, add_files, result_line
from server.telemetry.batches.metrics import BatchMetrics

ATTEMPTS = 3  # at a line on which the server fails
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds before a line is tried again
_DEFECT_SECONDS = 30.0  # before a batch goes on that a defect or a full disk has stopped
_log = logging.getLogger("headrace.batches")

Answerer = Callable[[str, bytes, str], Awaitable[LineAnswer]]  # of an endpoint's path, a body, and whose batch it is


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchParts:
    """What the batches of one server have in common.

    Attributes:
        rules: what is asked of an input file, by the endpoint of its batch.
        answer: runs a request.
        window: lines of all batches that may be under way; whoever waits longest is next, so that batches take turns.
        checking: held by the batch whose input is read.
        now: the time, in Unix seconds.
    """

    batches: BatchBook
    lines: LineBook
    files: FileStore
    metrics: BatchMetrics
    rules: Callable[[str], InputRules]
    answer: Answerer
    window: asyncio.Semaphore
    checking: asyncio.Lock
    now: Callable[[], float]


class BatchRun:
    """Runs a batch that has not ended.

    Args:
        batch: as it is kept; it is changed.
    """

    def __init__(self, batch: StoredBatch) -> None:
        self.batch = batch
        self._cancelling = asyncio.Event()

    async def cancel(self, batches: BatchBook, now: int) -> None:
        """End it as soon as what is under way has been given up. Lines that have ended keep their results."""
        if self.batch.status in ("validating", "in_progress"):
            self.batch.becomes("cancelling", now)
            await batches.save(self.batch)
            self._cancelling.set()

    async def run(self, parts: BatchParts) -> None:
        """Until it has ended, or this is cancelled, which leaves it as it is for the next server."""
        self._parts = parts
        while self.batch.open:
            try:
                end = await self._until_end()
                if self.batch.open:
                    await self._finish(end)
            except Exception:  # such as a disk that is full
                _log.exception("batch %s stopped; it goes on in %g s", self.batch.id, _DEFECT_SECONDS)
                await asyncio.sleep(_DEFECT_SECONDS)

    def _now(self) -> int:
        return int(self._parts.now())

    async def _until_end(self) -> BatchEnd:
        """Run what there is to run; why no more is."""
        if self.batch.end is not None:
            return self.batch.end
        if self.batch.status == "cancelling":
            return "cancelled"
        work = asyncio.create_task(self._work())
        cancelled = asyncio.create_task(self._cancelling.wait())
        try:
            left = max(0.0, self.batch.until - self._parts.now())
            await asyncio.wait({work, cancelled}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            cancelled.cancel()
            ended = work.done()
            work.cancel()
            failure = (await asyncio.gather(work, return_exceptions=True))[0]
        if self._cancelling.is_set():
            return "cancelled"
        if not ended:
            return "expired"
        if failure is not None:
            raise failure
        return "completed"

    async def _work(self) -> None:
        if self.batch.status == "validating":
            async with self._parts.checking:
                await self._check()
        if self.batch.status == "in_progress":
            await self._run_lines()

    # --- the input ---

    @property
    def _input(self) -> Path:
        return self._parts.files.path(self.batch.input_file)

    async def _check(self) -> None:
        """Read the input, and keep its lines or what is wrong with it."""
        batch, rules = self.batch, self._parts.rules(self.batch.endpoint)
        try:
            lines, errors = await asyncio.to_thread(read_input, self._input, rules)
        except FileNotFoundError:
            lines, errors = [], [LineError(code="file_not_found", message="The input file is no more.")]
        if errors:
            batch.errors = errors
            batch.becomes("failed", self._now())
            self._parts.metrics.batch_ended("failed")
        else:
            await self._parts.lines.enter(batch, lines)
            batch.total = len(lines)
            batch.becomes("in_progress", self._now())
        await self._parts.batches.save(batch)

    # --- lines ---

    async def _run_lines(self) -> None:
        """Run all that have not ended: as many at a time as the window lets in."""
        place, window = -1, self._parts.window
        async with asyncio.TaskGroup() as group:
            while found := await self._parts.lines.open_lines(self.batch, place):
                place = found[-1].place
                for line in found:
                    await window.acquire()
                    task = group.create_task(self._run_line(line))
                    task.add_done_callback(lambda _: window.release())

    async def _run_line(self, line: OpenLine) -> None:
        data = await asyncio.to_thread(_read_at, self._input, line.begin, line.size)
        with self._parts.metrics.line_running():
            answer = await self._answer(request_of(data))
        outcome: Outcome = "completed" if answer.status == 200 else "failed"
        await self._parts.lines.ended(self.batch, line.number, outcome, result_line(line.custom_id, answer))
        self._parts.metrics.line_ended(outcome)

    async def _answer(self, body: bytes) -> LineAnswer:
        """The answer to a request, tried again as long as the server is at fault, with longer and longer pauses."""
        for attempt in itertools.count(1):
            answer = await self._parts.answer(self.batch.endpoint, body, self.batch.owner)
            if answer.fault == "none" or (answer.fault == "broken" and attempt == ATTEMPTS):
                break
            self._parts.metrics.line_retried()
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(attempt - 1, 10))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        return answer

    # --- results ---

    async def _finish(self, end: BatchEnd) -> None:
        """Write the results of a batch that ends so."""
        batch, parts = self.batch, self._parts
        if batch.end is None:
            batch.end, batch.output_file, batch.error_file = end, new_id("file"), new_id("file")
            if end != "cancelled":
                batch.becomes("finalizing", self._now())
            await parts.batches.save(batch)
        output_file, error_file = batch.output_file, batch.error_file
        with contextlib.ExitStack() as kept:
            try:
                written = await Results(parts.files, parts.lines).write(batch, self._now(), kept)
                batch.becomes(batch.end, self._now())
                known = [file for file, _ in written]
                await parts.batches.save(batch, lambda rows: _settle(rows, batch, known))
            except BaseException:
                batch.status = "cancelling" if batch.end == "cancelled" else "finalizing"
                batch.output_file, batch.error_file = output_file, error_file
                raise
            for _, file in written:
                file.keep()
        parts.metrics.batch_ended(batch.end)


def _settle(rows: sqlite3.Connection, batch: StoredBatch, files: list[StoredFile]) -> None:
    add_files(rows, files)
    drop_lines(rows, batch)


def _read_at(path: Path, begin: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(size)
