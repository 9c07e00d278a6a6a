"""One SQLite database in a thread of its own: the event loop never waits for a disk.

Each call is one transaction. With the write-ahead log a process that is killed at any moment leaves all that it committed, and
nothing of what it did not; `synchronous=NORMAL` adds that after a power failure the last commits may be missing, which for a batch
means lines that are run again. A call that has begun is seen through: who is cancelled meanwhile is told first what came of it.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from server.to_thread import seen_through

if TYPE_CHECKING:
    import sqlite3

R = TypeVar("R")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    place INTEGER PRIMARY KEY AUTOINCREMENT,  -- in the order of their making
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    purpose TEXT NOT NULL,
    name TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    created INTEGER NOT NULL,                 -- Unix seconds, as all times
    expires INTEGER
);
CREATE INDEX IF NOT EXISTS files_of_owners ON files (owner, place);
CREATE TABLE IF NOT EXISTS batches (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    open INTEGER NOT NULL,
    record TEXT NOT NULL,                     -- a `StoredBatch` as JSON
    completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS lines (
    batch TEXT NOT NULL,
    number INTEGER NOT NULL,                  -- in the input file, from 1
    place INTEGER NOT NULL DEFAULT 0,         -- in the order in which they are run
    custom_id TEXT NOT NULL,
    begin INTEGER NOT NULL,                   -- of the line in the input file, in bytes
    size INTEGER NOT NULL,
    outcome TEXT,                             -- `completed`, `failed`; null: not yet
    answer BLOB,                              -- the line of the output or of the error file
    PRIMARY KEY (batch, number)
);
CREATE INDEX IF NOT EXISTS open_lines ON lines (batch, place) WHERE outcome IS NULL;
CREATE INDEX IF NOT EXISTS ended_lines ON lines (batch, outcome, number) WHERE outcome IS NOT NULL;
"""

_PAGES = 2000  # of 4 KiB: some milliseconds, for which others wait


class Database:
    """The database at a path.

    Args:
        path: of its file; more files stand beside it while it is open.
    """

    def __init__(self, path: Path) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._path = path
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Open it, or make it.

        Raises:
            sqlite3.Error, OSError: the file cannot be used.
        """
        await self._in_thread(self._open)

    def _open(self) -> None:
        import sqlite3  # plain serving has no use for it

        connection = sqlite3.connect(self._path, check_same_thread=False)
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # heard only while the file is empty
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.executescript(_SCHEMA)
        self._connection = connection

    async def run(self, work: Callable[["sqlite3.Connection"], R]) -> R:
        """What `work` returns, done in one transaction: all of it, or, if it raises, nothing."""
        return await self._in_thread(lambda: self._transaction(work))

    def _transaction(self, work: Callable[["sqlite3.Connection"], R]) -> R:
        assert self._connection is not None, "open it first"
        with self._connection:
            return work(self._connection)

    async def shrink(self) -> None:
        """Give some of the room that nothing takes any more back to the disk."""
        await self.run(
            lambda rows: rows.executescript(f"PRAGMA incremental_vacuum({_PAGES})")
        )  # `execute` frees one page

    async def close(self) -> None:
        """End what is under way and close it."""
        if self._connection is not None:
            await self._in_thread(self._connection.close)
            self._connection = None
        self._thread.shutdown()

    async def _in_thread(self, work: Callable[[], R]) -> R:
        return await seen_through(self._thread, work)
