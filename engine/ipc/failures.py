"""Failures that end a process: the exit codes, the error of a lost device, and how to exit when nothing can be waited for."""

import logging
import os
import sys
import threading
from pathlib import Path
from typing import NoReturn

from engine.ipc.private_folder import remove_folder

EXIT_MODEL = 3  # the model cannot be served
EXIT_LOST = 4  # the device, or another rank, is lost
_exiting = threading.Lock()


class DeviceLost(RuntimeError):
    """The device no longer computes for this process; a new process may get it back."""


def exit_at_once(code: int, *folders: Path | None) -> NoReturn:
    """End this process without cleaning up: freeing what a lost device holds, or leaving a group of ranks one by one, would wait
    forever, and taking modules apart that end anyway is only slow.

    The first thread that calls this decides the exit code; any other stays here until the process is gone. Whatever else fails
    meanwhile, say because the folder is gone, is not logged.

    Args:
        code: exit code.
        folders: removed first.
    """
    _exiting.acquire()  # and never released
    logging.shutdown()
    logging.disable()
    for folder in folders:
        if folder is not None:
            remove_folder(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
