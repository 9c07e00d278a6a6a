"""The lines of batches in the database: which are there, which have ended, and with what.

An end is one transaction, with the batch's count: whatever kills the server, a line has ended or it has not, and is counted once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.batches.database import Database
from server.batches.input import InputLine
from server.batches.records import Outcome, StoredBatch

if TYPE_CHECKING:
    import sqlite3

_PART = 2000  # lines in one transaction
PAGE = 256  # lines that are read at once


@dataclass(frozen=True, slots=True)
class OpenLine:
    """A line that has not ended. `place`: in the order in which lines are run."""

    number: int
    place: int
    custom_id: str
    begin: int
    size: int


class LineBook:
    """The lines of all batches."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def enter(self, batch: StoredBatch, lines: Sequence[InputLine]) -> None:
        """Keep the lines of a batch, in place of those that a server had begun to enter that was killed."""
        await self.drop(batch)
        query = "INSERT INTO lines (batch, number, place, custom_id, begin, size) VALUES (?, ?, ?, ?, ?, ?)"
        for at in range(0, len(lines), _PART):
            part = (
                (batch.id, line.number, line.place, line.custom_id, line.begin, line.size)
                for line in lines[at : at + _PART]
            )
            await self._database.run(lambda rows, part=part: rows.executemany(query, part))  # type: ignore[misc]

    async def drop(self, batch: StoredBatch) -> None:
        """Forget the lines of a batch."""
        await self._database.run(lambda rows: drop_lines(rows, batch))

    async def open_lines(self, batch: StoredBatch, after: int) -> list[OpenLine]:
        """The next lines of a batch that have not ended, behind the place `after`."""
        query = (
            "SELECT number, place, custom_id, begin, size FROM lines "
            "WHERE batch = ? AND outcome IS NULL AND place > ? ORDER BY place LIMIT ?"
        )
        found = await self._database.run(lambda rows: rows.execute(query, (batch.id, after, PAGE)).fetchall())
        return [OpenLine(*row) for row in found]

    async def ended(self, batch: StoredBatch, number: int, outcome: Outcome, answer: bytes) -> None:
        """A line has ended with this line of an output or an error file. The first end stays."""

        def end(rows: "sqlite3.Connection") -> None:
            query = "UPDATE lines SET outcome = ?, answer = ? WHERE batch = ? AND number = ? AND outcome IS NULL"
            if rows.execute(query, (outcome, answer, batch.id, number)).rowcount:
                rows.execute(f"UPDATE batches SET {outcome} = {outcome} + 1 WHERE id = ?", (batch.id,))

        await self._database.run(end)

    async def answers(self, batch: StoredBatch, outcome: Outcome, after: int) -> list[tuple[int, bytes]]:
        """(number, answer) of the next lines that ended so, in the order of the input."""
        query = (
            "SELECT number, answer FROM lines WHERE batch = ? AND outcome = ? AND number > ? ORDER BY number LIMIT ?"
        )
        return await self._database.run(lambda rows: rows.execute(query, (batch.id, outcome, after, PAGE)).fetchall())

    async def left(self, batch: StoredBatch, after: int) -> list[tuple[int, str]]:
        """(number, custom_id) of the next lines that never ended, in the order of the input."""
        query = (
            "SELECT number, custom_id FROM lines WHERE batch = ? AND outcome IS NULL AND number > ? "
            "ORDER BY number LIMIT ?"
        )
        return await self._database.run(lambda rows: rows.execute(query, (batch.id, after, PAGE)).fetchall())


def drop_lines(rows: "sqlite3.Connection", batch: StoredBatch) -> None:
    """Forget the lines of a batch, within a transaction."""
    rows.execute("DELETE FROM lines WHERE batch = ?", (batch.id,))
