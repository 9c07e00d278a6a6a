"""The files and batches of one server, kept in a folder: what endpoints ask for, and what runs beside them."""

import asyncio
import fcntl
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path

from configs.settings import Settings
from scheduler.types.config import IDLE_PART
from server.batches.answers import Answers
from server.batches.batch_book import BatchBook, Known
from server.batches.batch_run import BatchParts, BatchRun
from server.batches.database import Database
from server.batches.file_store import FileStore
from server.batches.input import InputRules
from server.batches.line_book import LineBook
from server.batches.records import BatchCounts, StoredBatch, StoredFile, new_id
from server.batches.window import Window
from server.errors import Conflict, TooManyBatches
from server.telemetry.batches.metrics import BatchMetrics

MOST_OPEN, MOST_OPEN_OF_ONE = 1000, 100  # batches, of all owners and of one
_SWEEP_SECONDS = 60.0  # between two looks for files whose time is over
_PRIVATE = 0o700
_log = logging.getLogger("headrace.batches")


class Batches:
    """Everything about files and batches. All calls belong to the event loop's thread.

    Args:
        settings: the server's, with a data_dir.
        endpoints: paths of those that batches may be for.
        metrics: counts.
        now: the time, in Unix seconds.

    Raises:
        OSError: the folder cannot be used; the text is a sentence for the operator.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        endpoints: Sequence[str],
        metrics: BatchMetrics,
        now: Callable[[], float] = time.time,
    ) -> None:
        assert settings.data_dir is not None
        self.endpoints = tuple(endpoints)
        self._settings, self._metrics, self._now = settings, metrics, now
        folder = Path(settings.data_dir)
        self._lock = _claimed(folder)
        self._database = Database(folder / "batches.sqlite3")
        self.files = FileStore(folder, self._database, settings.max_stored_bytes, now)
        self._batches, self._lines = BatchBook(self._database), LineBook(self._database)
        self._runs: dict[str, BatchRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._parts: BatchParts | None = None  # while batches are run
        metrics.watch(self._count, lambda: self.files.held)

    async def open(self) -> None:
        """Open what is kept. To be awaited before anything else is asked for."""
        await self._database.open()
        await self.files.open()
        for batch in await self._batches.open_ones():
            self._runs[batch.id] = BatchRun(batch)

    async def run(self, answers: Answers, ready: Callable[[], Awaitable[int]]) -> None:
        """Run batches until this is cancelled, which leaves what is under way for the next server.

        Args:
            answers: run requests.
            ready: awaited before the first is run; how many sequences may be under way.
        """
        window = await ready()
        self._parts = BatchParts(
            batches=self._batches,
            lines=self._lines,
            files=self.files,
            metrics=self._metrics,
            rules=self._rules,
            answers=answers,
            window=Window(window),
            checking=asyncio.Lock(),
            now=self._now,
        )
        try:
            for run in list(self._runs.values()):
                self._start(run)
            while True:
                try:
                    await self._sweep()
                except Exception:  # such as a disk that is full, or one that fails
                    _log.exception("what is kept too long could not be removed; tried again in %g s", _SWEEP_SECONDS)
                await asyncio.sleep(_SWEEP_SECONDS)
        finally:
            self._parts = None
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Close what is kept. To be awaited when `run` has ended."""
        await self._database.close()
        self.files.close()
        os.close(self._lock)

    def _start(self, run: BatchRun) -> None:
        if self._parts is None:
            return
        task = asyncio.create_task(run.run(self._parts))
        self._tasks.add(task)
        task.add_done_callback(lambda _: self._ended(run, task))

    def _ended(self, run: BatchRun, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not run.batch.open:
            self._runs.pop(run.batch.id, None)

    def _rules(self, endpoint: str, models: Collection[str]) -> InputRules:
        settings = self._settings
        return InputRules(
            endpoint=endpoint,
            models=models,
            most_lines=settings.max_batch_lines,
            most_bytes=settings.max_body_bytes,
        )

    def _count(self, status: str) -> int:
        return sum(run.batch.status == status for run in self._runs.values())

    async def _sweep(self) -> None:
        """Remove files whose time is over, but for those that a batch still reads, and batches whose results are no more."""
        used = {run.batch.input_file for run in self._runs.values()}
        if over := [file_id for file_id in await self.files.expired() if file_id not in used]:
            await self.files.delete(over)
        await self._batches.forget(self._now())
        await self._database.shrink()

    # --- what endpoints ask for ---

    async def delete_file(self, file: StoredFile) -> None:
        """Remove a file.

        Raises:
            Conflict: a batch still reads it.
        """
        reader = next((each.batch.id for each in self._runs.values() if each.batch.input_file == file.id), None)
        if reader is not None:
            raise Conflict(f"The file is the input of batch {reader}, which has not ended: cancel it first.")
        await self.files.delete([file.id])

    async def create(
        self,
        *,
        owner: str,
        key: str,
        endpoint: str,
        file: StoredFile,
        metadata: dict[str, str] | None,
        output_seconds: int,
    ) -> StoredBatch:
        """A new batch, which begins at once.

        Raises:
            TooManyBatches: as many as there may be have not ended.
        """
        if len(self._runs) >= MOST_OPEN:
            raise TooManyBatches(f"{len(self._runs)} batches have not ended; there may be {MOST_OPEN}.")
        own = sum(run.batch.owner == owner for run in self._runs.values())
        if own >= MOST_OPEN_OF_ONE:
            told = f"{own} batches of this key's tenant have not ended; there may be {MOST_OPEN_OF_ONE}."
            raise TooManyBatches(told)
        now = int(self._now())
        batch = StoredBatch(
            id=new_id("batch"),
            owner=owner,
            key=key,
            endpoint=endpoint,
            input_file=file.id,
            window="24h",
            created=now,
            until=now + 24 * 3600,
            output_seconds=output_seconds,
            metadata=metadata,
        )
        run = self._runs[batch.id] = BatchRun(batch)
        try:
            await self._batches.add(batch)
        except BaseException:
            del self._runs[batch.id]
            raise
        self._start(run)
        return batch

    async def find(self, batch_id: str, owner: str) -> Known:
        """A batch of this owner, and the counts of its lines.

        Raises:
            NotKept: there is none of that id, or it is another's.
        """
        return await self._batches.find(batch_id, owner)

    async def cancel(self, batch_id: str, owner: str) -> tuple[StoredBatch, BatchCounts]:
        """Begin to cancel a batch of this owner.

        Raises:
            NotKept: as `find`.
            Conflict: it has ended, or is about to.
        """
        batch, counts = await self._batches.find(batch_id, owner)
        run = self._runs.get(batch_id)
        if run is None or run.batch.status not in ("validating", "in_progress", "cancelling"):
            raise Conflict(f"The batch is {batch.status}, and cannot be cancelled any more.")
        await run.cancel(self._batches, int(self._now()))
        return run.batch, counts

    async def page(self, owner: str, *, after: str | None, limit: int) -> tuple[Sequence[Known], bool]:
        """Batches of this owner, the newest first, and whether there are more.

        Raises:
            InvalidRequest: `after` is no batch of this owner.
        """
        return await self._batches.page(owner, after=after, limit=limit)


def opened_batches(settings: Settings, endpoints: Sequence[str], metrics: BatchMetrics) -> Batches | None:
    """Those of a server, if it was given a folder for them.

    Raises:
        OSError: as `Batches`.
    """
    return None if settings.data_dir is None else Batches(settings, endpoints=endpoints, metrics=metrics)


def window_of(step_tokens: int, settings: Settings, engines: int) -> int:
    """Sequences of lines that may be under way: twice what the engines run of them at once, so that one is there when one ends.

    Args:
        step_tokens: of a step of an engine.
        settings: the server's.
        engines: how many there are.
    """
    share = settings.batch_step_tokens or max(1, step_tokens // IDLE_PART)
    return engines * max(4, min(2 * share, math.ceil(settings.max_waiting / 2)))


def _claimed(folder: Path) -> int:
    """Make the folder, and hold it until the process ends; the descriptor that does.

    Raises:
        OSError: it cannot be made or used, or another server holds it.
    """
    try:
        folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OSError(f"data_dir {folder} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise OSError(f"data_dir {folder} belongs to another server that runs: give each one of its own") from error
    return lock
