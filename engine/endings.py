"""How an engine ends, other than well: exit codes, and the error after which it must."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

EXIT_MODEL = 3  # the model cannot be served
EXIT_LOST = 4  # the device, or another rank


class DeviceLost(RuntimeError):
    """The device computes nothing any more in this process; a new process may get it back."""


def leave_at_once(folder: Path | None) -> NoReturn:
    """End this process without a look back: what a lost device holds waits for it for ever when it is given back.

    Args:
        folder: to remove.
    """
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(EXIT_LOST)
