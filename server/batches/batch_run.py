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
import itertools
import logging
import random
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from server.batches.answers import Answers
from server.batches.batch_book import BatchBook
from server.batches.file_store import FileStore
from server.batches.input import InputRules, read_input, request_of
from server.batches.line_book import LineBook, OpenLine, drop_lines
from server.batches.order import sequences_of
from server.batches.records import BatchEnd, LineError, Outcome, StoredBatch, StoredFile, new_id
from server.batches.results import Results, add_files, result_line
from server.batches.window import Slot, Window
from server.errors import StorageFull
from server.telemetry.batches.metrics import BatchMetrics
from server.to_thread import in_background

if TYPE_CHECKING:
    import sqlite3

ATTEMPTS = 3  # at a line on which the server fails
MOST_DEFECTS = 5  # that stop a batch; of full disks there may be any number
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds before a line is tried again
_DEFECT_SECONDS, _LONGEST_DEFECT_SECONDS = 30.0, 600.0  # before a batch goes on that something has stopped
_KEY_SECONDS = 1.0  # between two looks for the key of a batch that has none
_log = logging.getLogger("headrace.batches")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchParts:
    """What the batches of one server have in common.

    Attributes:
        rules: what is asked of an input file, by the endpoint of its batch and the models that its lines may name.
        answers: run requests.
        window: how much of all batches may be under way.
        checking: held by the batch whose input is read.
        now: the time, in Unix seconds.
    """

    batches: BatchBook
    lines: LineBook
    files: FileStore
    metrics: BatchMetrics
    rules: Callable[[str, Collection[str]], InputRules]
    answers: Answers
    window: Window
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
        self._defects = 0

    async def cancel(self, batches: BatchBook, now: int) -> None:
        """End it as soon as what is under way has been given up. Lines that have ended keep their results."""
        if self.batch.status in ("validating", "in_progress"):
            self.batch.becomes("cancelling", now)
            self._cancelling.set()
            await batches.save(self.batch)

    async def run(self, parts: BatchParts) -> None:
        """Until it has ended, or this is cancelled, which leaves it as it is for the next server."""
        self._parts = parts
        for stops in itertools.count():
            try:
                end = await self._until_end()
                if self.batch.open:
                    await self._finish(end)
                return
            except Exception as error:
                self._defects += not _passes(error)
                pause = min(_LONGEST_DEFECT_SECONDS, _DEFECT_SECONDS * 2.0 ** min(stops, 10))
                _log.exception("batch %s stopped; it goes on in %g s", self.batch.id, pause)
                await asyncio.sleep(pause)

    def _now(self) -> int:
        return int(self._parts.now())

    async def _until_end(self) -> BatchEnd:
        """Run what there is to run; why no more is."""
        if self.batch.end is not None:
            return self.batch.end
        if self.batch.status == "cancelling":
            return "cancelled"
        if self._defects >= MOST_DEFECTS:
            told = f"The server failed on this batch {self._defects} times, and gave it up; its log says how."
            self.batch.errors = [LineError(code="server_error", message=told)]
            return "failed"
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
            models = await self._permitted()
            async with self._parts.checking:
                await self._check(models)
        if self.batch.status == "in_progress":
            await self._run_lines()

    async def _permitted(self) -> Collection[str]:
        """The models that the key of the batch may use, as soon as it is valid."""
        told = False
        while (models := self._parts.answers.models(self.batch)) is None:
            if not told:
                _log.warning("batch %s waits: its key %r is not valid now", self.batch.id, self.batch.key)
                told = True
            await asyncio.sleep(_KEY_SECONDS)
        return models

    # --- the input ---

    @property
    def _input(self) -> Path:
        return self._parts.files.path(self.batch.input_file)

    async def _check(self, models: Collection[str]) -> None:
        """Read the input, and keep its lines or what is wrong with it."""
        batch, rules = self.batch, self._parts.rules(self.batch.endpoint, models)
        try:
            lines, errors = await asyncio.to_thread(read_input, self._input, rules)
        except FileNotFoundError:
            lines, errors = [], [LineError(code="file_not_found", message="The input file is no more.")]
        if not errors:
            await self._parts.lines.enter(batch, lines)
        if batch.status != "validating":  # it is cancelled meanwhile
            return
        if errors:
            batch.errors = errors
            batch.becomes("failed", self._now())
            self._parts.metrics.batch_ended("failed")
        else:
            batch.total = len(lines)
            batch.becomes("in_progress", self._now())
        await self._parts.batches.save(batch)

    # --- lines ---

    async def _run_lines(self) -> None:
        """Run all that have not ended: as many at a time as the window lets in."""
        place, begun = -1, asyncio.Semaphore(self._parts.window.size)
        async with asyncio.TaskGroup() as group:
            while found := await self._parts.lines.open_lines(self.batch, place):
                place = found[-1].place
                for line in found:
                    await begun.acquire()
                    await self._permitted()
                    read = await self._read(line)
                    slot = Slot(self._parts.window, read.sequences)
                    await slot.take()
                    task = group.create_task(self._run_line(line, read, slot))
                    task.add_done_callback(_leaving(slot, begun))

    async def _read(self, line: OpenLine) -> "_Read":
        return await in_background(lambda: _read_line(self._input, line))

    async def _run_line(self, line: OpenLine, read: "_Read", slot: Slot) -> None:
        """Run a line, again and again while the server is at fault, with longer and longer pauses in which others have its room."""
        parts, broken = self._parts, 0
        with parts.answers.begin(self.batch) as request, parts.metrics.line_running():
            for attempt in itertools.count():
                answer = request.failed() if read.body is None else await request.answer(read.body)
                broken += answer.fault == "broken"
                if read.body is None or answer.fault == "none" or broken == ATTEMPTS:
                    break
                slot.give()
                read = _Read()  # while it waits it takes no memory
                parts.metrics.line_retried()
                await asyncio.sleep(
                    min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0)
                )
                await self._permitted()
                read = await self._read(line)
                await slot.take()
        outcome: Outcome = "completed" if answer.status == 200 else "failed"
        await parts.lines.ended(self.batch, line.number, outcome, result_line(line.custom_id, answer))
        parts.metrics.line_ended(outcome)

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
        async with AsyncExitStack() as kept:
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


def _settle(rows: "sqlite3.Connection", batch: StoredBatch, files: list[StoredFile]) -> None:
    add_files(rows, files)
    drop_lines(rows, batch)


@dataclass(frozen=True, slots=True)
class _Read:
    """What a line asks for; `body` is None if the file is not what it was when it was checked."""

    body: bytes | None = None
    sequences: int = 1


def _read_line(path: Path, line: OpenLine) -> _Read:
    with path.open("rb") as file:
        file.seek(line.begin)
        data = file.read(line.size)
    try:
        body = request_of(data)
        return _Read(body, sequences_of(body))
    except (msgspec.MsgspecError, KeyError):
        return _Read()


def _leaving(slot: Slot, begun: asyncio.Semaphore) -> Callable[[object], None]:
    """What to do when a line is no more under way, also if it never began."""

    def leave(_: object) -> None:
        slot.give()
        begun.release()

    return leave


def _passes(error: Exception) -> bool:
    """Whether what stopped a batch may be over soon, such as a disk that is full."""
    import sqlite3

    if isinstance(error, ExceptionGroup):
        return all(map(_passes, error.exceptions))
    return isinstance(error, StorageFull | sqlite3.OperationalError | OSError) and not isinstance(
        error, FileNotFoundError
    )
