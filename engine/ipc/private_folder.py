"""Folders for the sockets of processes that belong together."""

import os
import shutil
import tempfile
from pathlib import Path

_LONGEST = 80  # bytes of the folder's parent: the path of a Unix socket in it may take 107


def private_folder(prefix: str) -> Path:
    """A new folder that only this user may enter, with a path short enough for sockets in it."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=prefix, dir=base if len(os.fsencode(base)) <= _LONGEST else "/tmp"))


def remove_folder(folder: Path) -> None:
    """Remove a folder with everything in it, although other threads and processes may still be about to put files there.

    It is moved aside first, in one step: from then on nobody finds it to put anything in, and if several remove it at the same
    time, one of them does. A folder that is gone already is not an error.
    """
    aside = folder.with_name(f"{folder.name}.removed")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)
