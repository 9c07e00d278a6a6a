"""Folders for the sockets of processes that belong together, and where they can be.

Whoever makes a folder holds a lock in it for as long as it lives, which the system takes back however it ends. So what a killed
process left behind is told from what is in use, in other containers that share the folder too, where process ids mean nothing.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "headrace-"
_LOCK = "in-use"
_NEW_LOCK = "in-use.new"  # until it is held
_NEW_SECONDS = 60.0  # a lock that has been new for longer is of a process that was killed just then
_LONGEST = 80  # bytes of the folder's parent: the path of a Unix socket in it may take 107
_held: dict[Path, int] = {}  # descriptors of the locks that this process holds


class NoFolder(OSError):
    """There is no folder in which this process may make others: a sentence that says what to do."""


def private_folder(prefix: str = PREFIX) -> Path:
    """A new folder that only this user may enter, with a path short enough for sockets in it. It counts as in use until
    `remove_folder`, or until this process ends.

    Raises:
        NoFolder: none can be made.
    """
    base = temporary_folder()
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        _held[folder] = _take(folder)
    except OSError as error:
        if folder is not None:
            remove_folder(folder)
        raise NoFolder(f"cannot make a folder in {base}: {error.strerror}; free space there, or set TMPDIR.") from error
    return folder


def temporary_folder() -> Path:
    """Where private folders go: the temporary folder, or, if nobody may write there or its path is too long for a socket's, the
    user's runtime folder or the system's shared memory. If there is no other temporary folder, it becomes that of this process
    and its children: libraries need one merely to be imported.

    Raises:
        NoFolder: nothing of all that can be written to.
    """
    try:
        usual = tempfile.gettempdir()
    except OSError:
        usual = None
    candidates = [usual or os.environ.get("TMPDIR"), "/tmp", os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"]
    for base in filter(None, candidates):
        if len(os.fsencode(base)) <= _LONGEST and os.path.isdir(base) and os.access(base, os.W_OK | os.X_OK):
            if usual is None:
                os.environ["TMPDIR"] = tempfile.tempdir = base
            return Path(base)
    tried = ", ".join(dict.fromkeys(filter(None, candidates)))
    raise NoFolder(
        f"no folder can be written to, and the server's sockets need one (tried {tried}); set TMPDIR to one."
    )


def remove_folder(folder: Path) -> None:
    """Remove a folder with everything in it, although other threads and processes may still be about to put files there.

    It is moved aside first, in one step: from then on nobody finds it to put anything in, and if several remove it at the same
    time, one of them does. A folder that is gone already, or may no longer be moved, is not an error.
    """
    aside = folder.with_name(f"{folder.name}.removed")
    with contextlib.suppress(OSError):
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    lock = _held.pop(folder, None)
    if lock is not None:
        os.close(lock)


def remove_leftovers() -> list[Path]:
    """Remove the private folders of this user's processes that have ended without removing them. Returns what it removed.

    Only what has a lock that nobody holds is such a folder: anything else of that name is somebody's files.

    Raises:
        NoFolder: there is nowhere they could be.
    """
    removed = []
    for folder in sorted(temporary_folder().glob(f"{PREFIX}*")):
        with _left(folder) as left:
            if left:
                remove_folder(folder)
                removed.append(folder)
    return removed


def _take(folder: Path) -> int:
    """Put a lock into a folder, in one step, and hold it. Returns its descriptor."""
    new = folder / _NEW_LOCK
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    new.rename(folder / _LOCK)
    return descriptor


@contextlib.contextmanager
def _left(folder: Path) -> Iterator[bool]:
    """Whether this user's process that made the folder is gone. Nobody else finds so at the same time."""
    try:
        status = folder.lstat()
        mine = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        fresh = time.time() - status.st_mtime < _NEW_SECONDS
        lock = _NEW_LOCK if not fresh and os.listdir(folder) == [_NEW_LOCK] else _LOCK
        descriptor = os.open(folder / lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK) if mine else None
    except OSError:
        descriptor = None
    if descriptor is None:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is held
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)
