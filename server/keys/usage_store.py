"""The SQLite file of use: one row for each hour, key and model."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from configs.loader import ConfigError

Row = tuple[int | str, ...]  # hour (Unix seconds), key, model, counts

_BUSY_SECONDS = 5.0  # another process may write to the file, too: a second server, or a backup
_VERSION = 1


class UsageError(ConfigError):
    """The file of use cannot be used: a sentence that names it and the cause."""


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which rows, in the order of their beginning, key and model.

    Attributes:
        start, end: Unix seconds; the hours that begin in [start, end).
        bucket: seconds that one row stands for, a multiple of an hour; it begins at a multiple of it.
        most: rows at most.
        key, model: of this one alone.
        after: (beginning, key, model) of the row behind which to go on.
    """

    start: int
    end: int
    bucket: int
    most: int
    key: str | None = None
    model: str | None = None
    after: tuple[int, str, str] | None = None


class UsageStore:
    """Rows that add up. Belongs to the thread that made it. It may be shared with other servers: they add to the same rows.

    Args:
        path: of the file, made if there is none; None: in memory.
        counts: names of what is counted.

    Raises:
        UsageError: it cannot be opened, or is something else.
    """

    def __init__(self, path: str | None, counts: Sequence[str]) -> None:
        import sqlite3  # plain serving has no use for it

        self._counts = tuple(counts)
        if path is not None:
            _make_private(path)
        try:
            self._db = sqlite3.connect(path or ":memory:", timeout=_BUSY_SECONDS, isolation_level=None)
            self._prepare(path)
        except sqlite3.Error as error:
            raise UsageError(f"{path} cannot be used for the use of keys (usage_db): {error}.") from None

    def _prepare(self, path: str | None) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        # With WAL a crash of the machine loses the last writes, never the file.
        self._db.execute("PRAGMA synchronous = NORMAL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise UsageError(
                f"{path} has version {version} of the table of use, and this server knows version {_VERSION}."
            )
        columns = ", ".join(f"{name} INTEGER NOT NULL" for name in self._counts)
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS usage (hour INTEGER NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL, "
            f"{columns}, PRIMARY KEY (hour, key, model)) WITHOUT ROWID"
        )
        self._db.execute(f"PRAGMA user_version = {_VERSION}")

    def add(self, rows: Iterable[Row]) -> None:
        """Add to what is there: all rows or none."""
        places = ", ".join("?" for _ in range(3 + len(self._counts)))
        sums = ", ".join(f"{name} = {name} + excluded.{name}" for name in self._counts)
        statement = f"INSERT INTO usage VALUES ({places}) ON CONFLICT (hour, key, model) DO UPDATE SET {sums}"
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(statement, rows)
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def read(self, query: UsageQuery) -> list[Row]:
        """Rows of a bucket's beginning, key, model and sums."""
        where = ["hour >= ?", "hour < ?"]
        values: list[int | str] = [query.start, query.end]
        for name, value in (("key", query.key), ("model", query.model)):
            if value is not None:
                where.append(f"{name} = ?")
                values.append(value)
        after = ""
        if query.after is not None:
            after = "HAVING (bucket, key, model) > (?, ?, ?)"
            where.append("hour >= ?")
            values += [query.after[0], *query.after]
        sums = ", ".join(f"SUM({name})" for name in self._counts)
        return self._db.execute(
            f"SELECT hour - hour % {int(query.bucket)} AS bucket, key, model, {sums} FROM usage "
            f"WHERE {' AND '.join(where)} GROUP BY bucket, key, model {after} ORDER BY bucket, key, model LIMIT ?",
            [*values, query.most],
        ).fetchall()

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()


def _make_private(path: str) -> None:
    """Make the file, for this user alone, if there is none."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise UsageError(f"{path} cannot be used for the use of keys (usage_db): {error.strerror}.") from None
