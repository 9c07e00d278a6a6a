"""How late an event loop gets to what it is asked to do at once, while the server serves: samples of a thread beside it.

What waits longest behind something else, such as all streams of a step, is what another client notices.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

_EVERY_SECONDS = 0.005


class LoopLag:
    """Asks every loop that is made from now on, and writes each answer to a file: monotonic seconds, and milliseconds of lag.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)

    def watching(self, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> Callable[[], asyncio.AbstractEventLoop]:
        """What makes loops that are asked."""

        def make() -> asyncio.AbstractEventLoop:
            loop = new_loop()
            threading.Thread(target=self._ask, args=(loop,), name="loop-lag", daemon=True).start()
            return loop

        return make

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        while not loop.is_closed():
            time.sleep(_EVERY_SECONDS)
            try:
                loop.call_soon_threadsafe(self._answer, time.monotonic())
            except RuntimeError:  # it was closed just now
                return

    def _answer(self, asked: float) -> None:
        now = time.monotonic()
        self._file.write(f"{now:.6f} {1e3 * (now - asked):.3f}\n")


def lags_between(path: Path, start: float, end: float) -> list[float]:
    """The lags in milliseconds that were seen in this time, the shortest first."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return sorted(float(lag) for now, lag in pairs if start <= float(now) <= end)
