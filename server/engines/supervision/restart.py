"""When a dead engine is started again, and when to give up."""

from collections import deque

RESTART_DELAYS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds before the 1st, 2nd ... restart within the window
MAX_FAILED_STARTS = 4  # within the window
WINDOW_SECONDS = 600.0


class RestartPolicy:
    """Counts deaths within a window; time is passed in.

    A start that fails says more than a death in service: whatever broke it, little memory or a missing file, is likely to
    last. So repeated failed starts end the attempts; after deaths in service only the wait becomes longer.
    """

    def __init__(self, max_failed_starts: int = MAX_FAILED_STARTS, delays: tuple[float, ...] = RESTART_DELAYS) -> None:
        self._max_failed_starts = max_failed_starts
        self._delays = delays
        self._deaths: deque[float] = deque()
        self._failed_starts: deque[float] = deque()

    @property
    def why(self) -> str:
        """Why it gives up, when it does."""
        return f"{self._max_failed_starts} starts failed within {WINDOW_SECONDS:g} s"

    def forget(self) -> None:
        """Begin anew."""
        self._deaths.clear()
        self._failed_starts.clear()

    def after_death(self, now: float, *, was_ready: bool) -> float | None:
        """Seconds to wait before the next start, or None to give up."""
        for stamps in (self._deaths, self._failed_starts):
            while stamps and now - stamps[0] > WINDOW_SECONDS:
                stamps.popleft()
        self._deaths.append(now)
        if not was_ready:
            self._failed_starts.append(now)
            if len(self._failed_starts) >= self._max_failed_starts:
                return None
        return self._delays[min(len(self._deaths), len(self._delays)) - 1]
