"""Folders for the sockets of processes that belong together."""

import os
import tempfile
from pathlib import Path

_LONGEST = 80  # a Unix socket path may take 107 bytes


def private_folder(prefix: str) -> Path:
    """A new folder that only this user may enter, with a path short enough for sockets in it."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=prefix, dir=base if len(os.fsencode(base)) <= _LONGEST else "/tmp"))
