"""The calls through which the disk store reaches its files, and the seam where tests make them fail.

What belongs here: system calls, and what differs between systems and file systems. Never: formats, books, policy.
"""

import ctypes
import errno
import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

_DIRECT: int = getattr(os, "O_DIRECT", 0)  # not every system has it
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h
_FILE_MODE = 0o600  # keys and values are as private as the prompts they come from
_FOLDER_MODE = 0o700


class Filesystem:
    """The system's own files.

    Files bypass the page cache (O_DIRECT) where the file system allows it. Requests whose offset, length and memory are whole pages
    then travel without a copy; others work too, but end direct access for their file.

    Why direct access, for blocks of 720 KiB through the store (ext4 on a virtual disk, 2 cores, both busy; medians of 7,
    alternating; MB/s with a cold page cache, writes until they are on the disk; seconds of processor time per GB):

        requests at once                        1       2       4       8    seconds per GB
        read, direct                          824     940    1352    1624              0.20
        read, through the page cache          497     516     693     627              0.53
        write to used slots, direct          1074    1249    1879    2101              0.23
        write to used slots, page cache      1351    1105    1587    1582              0.26
        write to new slots, direct            657     422     657    1050              0.32
        write to new slots, page cache        183     612     599     639              0.43

    A second read through the page cache gives 1,400 MB/s here (4,000 with idle cores), but the host tier makes better use of that
    memory, and the cache would push out the model's own pages. Rows off page boundaries cost direct access a copy: 852 instead of
    1352.

    Raises (every method): OSError.
    """

    def make_folder(self, path: Path) -> None:
        """Create the folder and those above it, readable by nobody else; existing ones stay as they are."""
        path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)

    def claim_folder(self, path: Path) -> None:
        """Create the folder or take it over: nobody else may read it, and its time is set to now. Needs its owner's rights."""
        self.make_folder(path)
        path.chmod(_FOLDER_MODE)
        os.utime(path)

    def lock(self, path: Path) -> int:
        """The descriptor of a file that only this process holds, until it is closed or the process ends in whatever way.

        Raises:
            BlockingIOError: somebody else holds it.
        """
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            os.close(file)
            raise
        return file

    def holder(self, path: Path) -> str:
        """The process id that the holder of a lock wrote into it, as text; empty if it cannot be read."""
        with suppress(OSError, ValueError):
            return str(int(path.read_text()))
        return ""

    def names(self, folder: Path) -> list[str]:
        """The names of what the folder holds."""
        return os.listdir(folder)

    def open(self, path: Path) -> int:
        """Open a file for reading and writing; it is created if missing. Never follows a symbolic link."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(path, flags | _DIRECT, _FILE_MODE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        return os.open(path, flags, _FILE_MODE)

    def close(self, file: int) -> None:
        """Give the descriptor back."""
        os.close(file)

    def size(self, file: int) -> int:
        """The file's length in bytes."""
        return os.fstat(file).st_size

    def is_at(self, file: int, path: Path) -> bool:
        """Whether the open file is the one that bears this name now: it is not if it was removed, moved away, or replaced."""
        try:
            there = os.stat(path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return os.path.samestat(os.fstat(file), there)

    def read(self, file: int, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill the buffers one after the other. Returns the bytes read, fewer than asked for at the file's end."""
        try:
            return os.preadv(file, buffers, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        _end_direct_access(file)
        return os.preadv(file, buffers, offset)

    def write(self, file: int, buffers: Sequence[memoryview], offset: int) -> int:
        """Write the buffers one after the other. Returns the bytes written, which may be fewer than given."""
        try:
            return os.pwritev(file, buffers, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        _end_direct_access(file)
        return os.pwritev(file, buffers, offset)

    def write_all(self, file: int, buffers: Sequence[memoryview], offset: int) -> None:
        """Write the buffers whole, in as many calls as it takes."""
        rest = list(buffers)
        while rest:
            written = self.write(file, rest, offset)
            if written <= 0:
                raise OSError(errno.ENOSPC, "nothing was written")
            offset += written
            while rest and written >= len(rest[0]):
                written -= len(rest.pop(0))
            if written:
                rest[0] = rest[0][written:]

    def punch(self, file: int, offset: int, length: int) -> bool:
        """Give a range's pages back to the disk; it then reads as zeros. Returns whether that can be done here."""
        fallocate = _fallocate()
        if fallocate is None:
            return False
        mode = _KEEP_SIZE | _PUNCH_HOLE
        return int(fallocate(file, mode, ctypes.c_int64(offset), ctypes.c_int64(length))) == 0

    def remove(self, path: Path) -> None:
        """Unlink a file."""
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()

    def changed(self, path: Path) -> float:
        """When the file or folder was last changed, in seconds since 1970."""
        return path.stat().st_mtime

    def disk_bytes(self, path: Path) -> int:
        """The bytes that the file takes on the disk, without holes."""
        return path.stat(follow_symlinks=False).st_blocks * 512  # POSIX counts blocks of 512, whatever the disk's are


def _end_direct_access(file: int) -> None:
    """EINVAL may mean that direct access needs another alignment, or is refused after all: worth another try without it.

    Also if the file is not open for direct access: another thread may have had the same error a moment ago.
    """
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    fcntl.fcntl(file, fcntl.F_SETFL, flags & ~_DIRECT)


@cache
def _fallocate() -> "ctypes._NamedFuncPointer | None":
    """The C library's `fallocate`, which Python does not wrap with its modes; None where the system has none."""
    return getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
