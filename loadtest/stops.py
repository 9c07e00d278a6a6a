"""The signals that end a command early: Ctrl-C, SIGTERM, a terminal that is closed. What has come by then is kept."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def heeded() -> list[signal.Signals]:
    """Those of the signals that are not to be ignored, as `nohup` wants it of SIGHUP."""
    return [each for each in STOPS if signal.getsignal(each) is not signal.SIG_IGN]


@contextmanager
def interruptible() -> Iterator[None]:
    """While the block runs, each of these signals raises KeyboardInterrupt in it, as Ctrl-C does. For the main thread."""
    before = {each: signal.signal(each, _interrupt) for each in heeded()}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def held() -> Iterator[None]:
    """While the block runs, these signals wait: in the birth of a process an exception would be lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
