"""An amount a minute, held by a leaky bucket (Turner 1986, "New Directions in Communications", as a meter)."""

import math


class LeakyBucket:
    """What was used of late, and leaks away at the pace of the limit.

    Whoever adds only what `wait` lets in at once promises that in any window of T seconds at most `limit * (1 + T / 60)` are used:
    a minute's worth at once by one who used nothing before, and then as much as the pace allows.

    Args:
        limit: amount for each minute.
        now: seconds of a clock that never goes back; so are all others here.
    """

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self._used = 0.0
        self._at = now

    @property
    def _rate(self) -> float:
        return self.limit / 60

    def used(self, now: float) -> float:
        """What has not leaked yet. It may be more than the limit: what was used beyond is paid back by waiting."""
        self._used = max(0.0, self._used - max(0.0, now - self._at) * self._rate)
        self._at = max(self._at, now)
        return self._used

    def add(self, amount: float, now: float) -> None:
        """Use so much, or give it back if it is negative; never more than is there."""
        self._used = max(0.0, self.used(now) + amount)

    def wait(self, amount: float, now: float) -> float:
        """Seconds until so much passes if nothing else is used before; infinite for more than the limit."""
        if amount > self.limit:
            return math.inf
        return max(0.0, (self.used(now) + amount - self.limit) / self._rate)

    def limit_to(self, limit: int, now: float) -> None:
        """Another limit from now on. What was used stays used."""
        self.used(now)
        self.limit = limit
