"""How an engine ends, other than well: exit codes, and the error after which it must."""

import logging
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

EXIT_MODEL = 3  # the model cannot be served
EXIT_LOST = 4  # the device, or another rank


class DeviceLost(RuntimeError):
    """The device computes nothing any more in this process; a new process may get it back."""


def leave_at_once(code: int, folder: Path | None = None) -> NoReturn:
    """End this process without a look back. What a lost device holds waits for it for ever when it is given back, and a group of
    ranks when it is left one by one.

    Args:
        code: exit code.
        folder: to remove.
    """
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
