"""How an engine ends, other than well: exit codes, and the error after which it must."""

import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import NoReturn

EXIT_MODEL = 3  # the model cannot be served
EXIT_LOST = 4  # the device, or another rank
_TRIES = 20


class DeviceLost(RuntimeError):
    """The device computes nothing any more in this process; a new process may get it back."""


def leave_at_once(code: int, folder: Path | None = None) -> NoReturn:
    """End this process without a look back. What a lost device holds waits for it for ever when it is given back, and a group of
    ranks when it is left one by one.

    Args:
        code: exit code.
        folder: to remove.
    """
    for _ in range(_TRIES):  # another thread may put a file there meanwhile
        if folder is None or not folder.exists():
            break
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.01)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
