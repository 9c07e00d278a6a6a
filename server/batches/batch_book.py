"""Batches in the database."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from server.batches.database import Database
from server.batches.file_store import page
from server.batches.records import BatchCounts, StoredBatch
from server.errors import NotKept

if TYPE_CHECKING:
    import sqlite3

_COLUMNS = "record, completed, failed"
_LOOKED_AT = 256  # batches that have ended
Known = tuple[StoredBatch, BatchCounts]


class BatchBook:
    """The batches of one server."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, batch: StoredBatch) -> None:
        """Keep a new one."""
        query = "INSERT INTO batches (id, owner, open, record) VALUES (?, ?, 1, ?)"
        await self._database.run(lambda rows: rows.execute(query, (batch.id, batch.owner, _written(batch))))

    async def save(self, batch: StoredBatch, also: Callable[["sqlite3.Connection"], None] = lambda _: None) -> None:
        """Keep a batch as it is now, and do `also` in the same transaction."""
        values = (_written(batch), batch.open, batch.id)

        def save(rows: "sqlite3.Connection") -> None:
            also(rows)
            rows.execute("UPDATE batches SET record = ?, open = ? WHERE id = ?", values)

        await self._database.run(save)

    async def find(self, batch_id: str, owner: str) -> Known:
        """A batch of this owner, and what has ended of it.

        Raises:
            NotKept: there is none of that id, or it is another's.
        """
        query = f"SELECT {_COLUMNS} FROM batches WHERE id = ? AND owner = ?"
        row = await self._database.run(lambda rows: rows.execute(query, (batch_id, owner)).fetchone())
        if row is None:
            raise NotKept(f"There is no batch {batch_id[:100]!r}.")
        return _known(row)

    async def page(self, owner: str, *, after: str | None, limit: int) -> tuple[list[Known], bool]:
        """Batches of this owner, the newest first, and whether there are more.

        Raises:
            InvalidRequest: `after` is no batch of this owner.
        """
        rows = await self._database.run(
            lambda rows: page(
                rows, "batches", _COLUMNS, "owner = ?", [owner], after=after, limit=limit, ascending=False
            )
        )
        return [_known(row) for row in rows[:limit]], len(rows) > limit

    async def open_ones(self) -> list[StoredBatch]:
        """Those that have not ended, the oldest first."""
        query = f"SELECT {_COLUMNS} FROM batches WHERE open ORDER BY place"
        return [_known(row)[0] for row in await self._database.run(lambda rows: rows.execute(query).fetchall())]

    async def forget(self, before: float) -> None:
        """Forget batches that have ended and whose results were kept until then: of the oldest some hundreds at a time."""

        def forget(rows: "sqlite3.Connection") -> None:
            query = f"SELECT {_COLUMNS} FROM batches WHERE NOT open ORDER BY place LIMIT {_LOOKED_AT}"
            ended = [_known(row)[0] for row in rows.execute(query).fetchall()]
            over = [(batch.id,) for batch in ended if batch.until + batch.output_seconds <= before]
            rows.executemany("DELETE FROM batches WHERE id = ?", over)

        await self._database.run(forget)


def _written(batch: StoredBatch) -> str:
    return msgspec.json.encode(batch).decode()


def _known(row: tuple[object, ...]) -> Known:
    record, completed, failed = row
    counts = BatchCounts(completed=int(str(completed)), failed=int(str(failed)))
    return msgspec.json.decode(str(record), type=StoredBatch), counts
