"""Files in a folder, and what is known of them in the database.

A file is written beside the others under a name of its own, and gets its place when it is whole: what a server that was killed had
begun is removed by the next one. What belongs here: files. Never: what they mean.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from server.batches.database import Database
from server.batches.records import StoredFile
from server.errors import InvalidRequest, NotKept, StorageFull
from server.to_thread import seen_through

if TYPE_CHECKING:
    import sqlite3

R = TypeVar("R")

MOST_FILES = 10_000  # of one owner
_COLUMNS = "id, owner, purpose, name, bytes, created, expires"
_PRIVATE = 0o700
_THREADS = 4  # a slow disk holds up these, and no prompt that is read in another thread


class FileStore:
    """The files of one server.

    Args:
        folder: for their contents.
        database: opened.
        most_bytes: of all files together.
        now: the time, in Unix seconds.
    """

    def __init__(self, folder: Path, database: Database, most_bytes: int, now: Callable[[], float]) -> None:
        self._folder, self._begun = folder / "files", folder / "begun"
        self._database = database
        self._most_bytes = most_bytes
        self._now = now
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="files")
        self.held = 0  # bytes of all files, those that are being written included

    async def open(self) -> None:
        """Make the folders, remove what was begun, and look at what is there."""
        await self.in_thread(self._clean)
        self.held = await self._database.run(_total)
        names = await self._database.run(lambda rows: {name for (name,) in rows.execute("SELECT id FROM files")})
        await self.in_thread(lambda: self._remove_unknown(names))

    def close(self) -> None:
        """Nothing is written any more."""
        self._threads.shutdown()

    async def in_thread(self, work: Callable[[], R], *, owed: bool = False) -> R:
        """What comes of work with files, as `seen_through` has it."""
        return await seen_through(self._threads, work, owed=owed)

    def _clean(self) -> None:
        shutil.rmtree(self._begun, ignore_errors=True)
        for folder in (self._folder, self._begun):
            folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)

    def _remove_unknown(self, known: set[str]) -> None:
        """Contents that no row names: a server was killed between the two."""
        for path in self._folder.iterdir():
            if path.name not in known:
                path.unlink(missing_ok=True)

    def path(self, file_id: str) -> Path:
        """Where the contents are."""
        return self._folder / file_id

    # --- a new one ---

    def begin(self, file_id: str, *, promised: bool = False) -> "NewFile":
        """A file that is to be written; one that was `promised` finds room in any case."""
        return NewFile(self, self._begun / file_id, self.path(file_id), promised=promised)

    def take_room(self, size: int, *, promised: bool) -> None:
        """So many bytes more are to be kept.

        Raises:
            StorageFull: there is no room for them.
        """
        if not promised and self.held + size > self._most_bytes:
            raise StorageFull(
                f"The files of this server may have {self._most_bytes} bytes together (max_stored_bytes); {self.held} are "
                f"taken: delete some."
            )
        self.held += size

    def give_room(self, size: int) -> None:
        """So many bytes are kept no more."""
        self.held -= size

    async def ensure_few(self, owner: str) -> None:
        """Refuse a file more than an owner may have.

        Raises:
            StorageFull: as many are there.
        """
        query = "SELECT count(*) FROM files WHERE owner = ?"
        (files,) = await self._database.run(lambda rows: rows.execute(query, (owner,)).fetchone())
        if files >= MOST_FILES:
            raise StorageFull(f"There are {files} files of this key's tenant, and may be {MOST_FILES}: delete some.")

    async def add(self, file: StoredFile) -> None:
        """Know a file whose contents are in their place."""
        await self._database.run(lambda rows: insert_file(rows, file))

    # --- those that are there ---

    async def find(self, file_id: str, owner: str) -> StoredFile:
        """A file of this owner.

        Raises:
            NotKept: there is none of that id, it has expired, or it is another's.
        """
        query = f"SELECT {_COLUMNS} FROM files WHERE id = ? AND owner = ?"
        row = await self._database.run(lambda rows: rows.execute(query, (file_id, owner)).fetchone())
        if row is None or _expired(found := _file(row), self._now()):
            raise NotKept(f"There is no file {file_id[:100]!r}.")
        return found

    async def page(
        self, owner: str, *, after: str | None, limit: int, ascending: bool, purpose: str | None
    ) -> tuple[list[StoredFile], bool]:
        """Files of this owner by the time of their making, and whether there are more.

        Args:
            owner: whose.
            after: id of the file before the first; None: from the beginning.
            limit: of files.
            ascending: the oldest first.
            purpose: None: of any.

        Raises:
            InvalidRequest: `after` is no file of this owner.
        """
        where, values = "owner = ? AND (expires IS NULL OR expires > ?)", [owner, self._now()]
        if purpose is not None:
            where, values = f"{where} AND purpose = ?", [*values, purpose]
        rows = await self._database.run(
            lambda rows: page(rows, "files", _COLUMNS, where, values, after=after, limit=limit, ascending=ascending)
        )
        return [_file(row) for row in rows[:limit]], len(rows) > limit

    async def delete(self, file_ids: Sequence[str]) -> None:
        """Forget these, and remove their contents."""

        def forget(rows: "sqlite3.Connection") -> int:
            freed = 0
            for file_id in file_ids:
                found = rows.execute("SELECT bytes FROM files WHERE id = ?", (file_id,)).fetchone()
                freed += found[0] if found else 0
                rows.execute("DELETE FROM files WHERE id = ?", (file_id,))
            return freed

        def remove() -> None:
            for file_id in file_ids:
                self.path(file_id).unlink(missing_ok=True)

        self.held -= await self._database.run(forget)
        await self.in_thread(remove, owed=True)

    async def expired(self) -> list[str]:
        """Ids of the files whose time is over."""
        query = "SELECT id FROM files WHERE expires <= ?"
        return [row[0] for row in await self._database.run(lambda rows: rows.execute(query, (self._now(),)).fetchall())]


class NewFile:
    """A file that is being written, as long as it is in the `async with` statement; then it is gone, unless it was kept."""

    def __init__(self, store: FileStore, path: Path, place: Path, *, promised: bool) -> None:
        self._store, self._path, self._place, self._promised = store, path, place, promised
        self._file: BinaryIO | None = None
        self.size = 0
        self._kept = False

    async def __aenter__(self) -> "NewFile":
        return self

    async def __aexit__(self, *error: object) -> None:
        if not self._kept:
            self._store.give_room(self.size)
            await self._store.in_thread(self._remove, owed=True)

    def _remove(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written is tried once more
                self._file.close()
        for path in (self._path, self._place):
            with contextlib.suppress(OSError):
                path.unlink()

    async def write(self, data: bytes) -> None:
        """Add this at its end.

        Raises:
            StorageFull: there is no room for it, or the disk is full.
        """
        self._store.take_room(len(data), promised=self._promised)
        self.size += len(data)
        await self._on_disk(lambda: self._write(data))

    async def _on_disk(self, work: Callable[[], None]) -> None:
        try:
            await self._store.in_thread(work)
        except OSError as error:
            raise StorageFull(f"The file cannot be written: {error.strerror}.") from error

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._file = self._path.open("wb")
        self._file.write(data)

    async def close(self) -> None:
        """It is whole: have it on the disk, and in its place.

        Raises:
            StorageFull: as `write`.
        """
        await self._on_disk(self._close)

    def _close(self) -> None:
        self._write(b"")
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.replace(self._place)
        folder = os.open(self._place.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def keep(self) -> None:
        """Somebody knows it."""
        self._kept = True


def insert_file(rows: "sqlite3.Connection", file: StoredFile) -> None:
    """Add the row of a file."""
    values = (file.id, file.owner, file.purpose, file.name, file.bytes, file.created, file.expires)
    rows.execute(f"INSERT INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)


def page(
    rows: "sqlite3.Connection",
    table: str,
    columns: str,
    where: str,
    values: Sequence[object],
    *,
    after: str | None,
    limit: int,
    ascending: bool,
) -> list[tuple[object, ...]]:
    """Rows of a table by their places, behind that of the id `after`, and one more than `limit` if there are more.

    Raises:
        InvalidRequest: no row has that id.
    """
    values = list(values)
    if after is not None:
        found = rows.execute(f"SELECT place FROM {table} WHERE id = ? AND owner = ?", (after, values[0])).fetchone()
        if found is None:
            raise InvalidRequest(f"`after` must be the id of one that is there, got {after[:100]!r}", param="after")
        where, values = f"{where} AND place {'>' if ascending else '<'} ?", [*values, found[0]]
    order = "ASC" if ascending else "DESC"
    query = f"SELECT {columns} FROM {table} WHERE {where} ORDER BY place {order} LIMIT ?"
    return rows.execute(query, [*values, limit + 1]).fetchall()


def _file(row: tuple[object, ...]) -> StoredFile:
    return StoredFile(**dict(zip(_COLUMNS.split(", "), row, strict=True)))  # type: ignore[arg-type]


def _expired(file: StoredFile, now: float) -> bool:
    return file.expires is not None and file.expires <= now


def _total(rows: "sqlite3.Connection") -> int:
    return int(rows.execute("SELECT coalesce(sum(bytes), 0) FROM files").fetchone()[0])
