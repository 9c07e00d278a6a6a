"""The folder of a disk store: held by one process at a time, with a subfolder of numbered files for each model and format."""

import errno
import re
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from engine.kv_store.disk.filesystem import Filesystem
from engine.kv_store.store import StoreRefused

FORMAT = 1  # of the subfolder's files; another format has another subfolder
_LOCK = "headrace.lock"
_SUBFOLDER = re.compile(r"kv-[0-9a-f]{32}")
_SEGMENT = re.compile(r"(\d{6,9})\.blocks")


class Other(NamedTuple):
    """What another model or format left behind."""

    path: Path
    size: int  # bytes on disk


class Folder:
    """Files of slots, opened as they are needed.

    Only files with names of our own making are ever read, written or removed: the operator's own files may lie beside them.

    Attributes:
        others: subfolders of other models and formats, the one used longest ago first.

    Raises:
        StoreRefused: another process holds the folder.
        OSError: the system says no.
    """

    def __init__(self, path: Path, fingerprint: str, block_bytes: int, filesystem: Filesystem) -> None:
        self._filesystem = filesystem
        self._files: dict[int, int] = {}
        name = blake2b(f"{FORMAT}|{block_bytes}|{fingerprint}".encode(), digest_size=16).hexdigest()
        self._path = path / f"kv-{name}"
        self._lock_path = path / _LOCK
        filesystem.make_folder(path)
        self._lock: int | None = self._take_lock(self._lock_path)
        try:
            filesystem.claim_folder(self._path)
            self.others = self._find_others(path)
        except BaseException:
            self.close()
            raise

    def segments(self) -> list[int]:
        """Numbers of the files that are there."""
        found = (_SEGMENT.fullmatch(name) for name in self._filesystem.names(self._path))
        return sorted(int(match[1]) for match in found if match)

    def file(self, segment: int) -> int:
        """The descriptor of a file, created if missing."""
        if segment not in self._files:
            self._files[segment] = self._filesystem.open(self._segment(segment))
        return self._files[segment]

    def check(self) -> None:
        """See whether the files that are open are still those of the folder.

        Raises:
            OSError: one of them was deleted or replaced, or the folder cannot be reached.
        """
        files = [(file, self._segment(segment)) for segment, file in list(self._files.items())]
        if self._lock is not None:
            files.append((self._lock, self._lock_path))
        for file, path in files:
            if not self._filesystem.is_at(file, path):
                raise OSError(errno.ESTALE, f"{path} was deleted or replaced")

    def remove(self, segment: int) -> None:
        """Remove a file, open or not."""
        if (file := self._files.pop(segment, None)) is not None:
            self._filesystem.close(file)
        self._filesystem.remove(self._segment(segment))

    def remove_other(self, other: Other) -> None:
        """Remove another format's files, and its subfolder if nothing else is in it."""
        for name in self._filesystem.names(other.path):
            if _SEGMENT.fullmatch(name):
                self._filesystem.remove(other.path / name)
        if not self._filesystem.names(other.path):
            self._filesystem.remove_folder(other.path)

    def close(self) -> None:
        """Close all files and let another process in."""
        while self._files:
            self._filesystem.close(self._files.popitem()[1])
        if self._lock is not None:
            self._filesystem.close(self._lock)
            self._lock = None

    def _take_lock(self, path: Path) -> int:
        try:
            return self._filesystem.lock(path)
        except BlockingIOError:
            holder = self._filesystem.holder(path)
        raise StoreRefused(
            f"{path.parent} keeps the KV blocks of another process{f' (pid {holder})' if holder else ''}; "
            "give each server a folder of its own, or stop the other one"
        )

    def _find_others(self, parent: Path) -> list[Other]:
        names = (name for name in self._filesystem.names(parent) if _SUBFOLDER.fullmatch(name))
        paths = [parent / name for name in names if name != self._path.name]
        return [Other(path, self._size(path)) for path in sorted(paths, key=self._filesystem.changed)]

    def _size(self, path: Path) -> int:
        names = (name for name in self._filesystem.names(path) if _SEGMENT.fullmatch(name))
        return sum(self._filesystem.disk_bytes(path / name) for name in names)

    def _segment(self, number: int) -> Path:
        return self._path / f"{number:06}.blocks"
