"""What one key has open, and has used of late, beside what it may.

The only place where this is counted. Whoever shares it out over several processes makes another `KeyAllowance` with the same
verbs, and gives it to `Accounts`.
"""

import math
from collections.abc import Callable
from typing import Protocol

from server.errors import RateLimited
from server.keys.buckets import LeakyBucket
from server.keys.entry import KeyLimits

Headers = list[tuple[bytes, bytes]]

RATE_HEADERS = [f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")]
_EPSILON = 1e-6  # seconds: rounding of a wait that is over
_FIRST_GUESS = 1.0  # seconds that a request takes, before any has ended
_NEWEST = 0.2  # weight of the newest request in what they take


class KeyAllowance(Protocol):
    """The counters of one key."""

    def limit_to(self, limits: KeyLimits) -> None:
        """Other limits from now on. What is open and was used stays so."""

    def begin(self) -> float:
        """A request comes in. Returns when, for `end`.

        Raises:
            RateLimited: it may not; nothing was counted.
        """

    def end(self, begun: float, *, served: bool) -> None:
        """A request is over, whatever became of it; `served`: it took as long as such a request takes."""

    def take_back(self) -> None:
        """A request that came in does not count for its minute: another limit refused it. It is to be ended, too."""

    def reserve(self, used: int, expected: int) -> int:
        """So many tokens are used now, and so many more at most, as far as one can say. Returns how many of these are reserved:
        what is used of them later is to be booked against it.

        Raises:
            RateLimited: it may not; nothing was counted.
        """

    def book(self, used: int, released: int) -> None:
        """So many more tokens were used (fewer if it is negative), and so many are reserved no longer."""

    def headers(self) -> Headers:
        """What the client is told: limits, what remains, and until when all of it is there again."""


class LocalAllowance:
    """The counters of one key in this process.

    Tokens that a request may still use are reserved and do not leak; those that it has used do, from then on. So a request is let
    in only if what others have used, what they have been promised and what it asks for are no more than the limit.
    """

    def __init__(self, limits: KeyLimits, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._limits = limits
        self._requests: LeakyBucket | None = None
        self._tokens: LeakyBucket | None = None
        self._reserved = 0
        self._open: list[float] = []  # when each began; they need not end in that order
        self._typical = _FIRST_GUESS
        self.limit_to(limits)

    @property
    def open(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    def limit_to(self, limits: KeyLimits) -> None:
        """See `KeyAllowance`."""
        self._limits, now = limits, self._clock()
        self._requests = _limited(self._requests, limits.requests_per_minute, now)
        self._tokens = _limited(self._tokens, limits.tokens_per_minute, now)

    def begin(self) -> float:
        """See `KeyAllowance`."""
        now, most = self._clock(), self._limits.concurrent_requests
        if most is not None and len(self._open) >= most:
            what = f"and {len(self._open)} are open"
            raise _refusal("concurrent_requests", most, what, self._next_end(now))
        if self._requests is not None:
            wait = self._requests.wait(1, now)
            if wait > _EPSILON:
                what = "and so many were sent of late"
                raise _refusal("requests_per_minute", self._requests.limit, what, wait)
            self._requests.add(1, now)
        self._open.append(now)
        return now

    def end(self, begun: float, *, served: bool) -> None:
        """See `KeyAllowance`."""
        self._open.remove(begun)
        if served:
            self._typical += _NEWEST * (self._clock() - begun - self._typical)

    def take_back(self) -> None:
        """See `KeyAllowance`."""
        if self._requests is not None:
            self._requests.add(-1, self._clock())

    def reserve(self, used: int, expected: int) -> int:
        """See `KeyAllowance`."""
        bucket = self._tokens
        if bucket is None:
            return 0
        now, limit = self._clock(), bucket.limit
        reserved = min(expected, max(0, limit - used))
        needed = used + reserved
        wait = bucket.wait(needed + self._reserved, now)
        if needed > limit:
            what = f"and the prompt of this request alone has {used} tokens"
            raise _refusal("tokens_per_minute", limit, what, math.inf)
        if wait > _EPSILON:
            free = max(0, math.floor(limit - self._reserved - bucket.used(now)))
            what = f"{free} of them are left, and this request needs {needed}"
            raise _refusal("tokens_per_minute", limit, what, self._next_end(now) if math.isinf(wait) else wait)
        self._reserved += reserved
        bucket.add(used, now)
        return reserved

    def book(self, used: int, released: int) -> None:
        """See `KeyAllowance`."""
        self._reserved = max(0, self._reserved - released)
        if self._tokens is not None:
            self._tokens.add(used, self._clock())

    def headers(self) -> Headers:
        """See `KeyAllowance`."""
        now, told = self._clock(), Headers()
        if self._requests is not None:
            told += _told(b"requests", self._requests, 0, now)
        if self._tokens is not None:
            told += _told(b"tokens", self._tokens, self._reserved, now)
        return told

    def _next_end(self, now: float) -> float:
        """Seconds until the oldest open request ends, if it takes as long as others did. One that takes longer already says
        nothing about when it ends: then as long again as a typical one."""
        oldest = min(self._open, default=now)
        left = oldest + self._typical - now
        return left if left > 0 else self._typical


def _limited(bucket: LeakyBucket | None, limit: int | None, now: float) -> LeakyBucket | None:
    if limit is None:
        return None
    if bucket is None:
        return LeakyBucket(limit, now)
    bucket.limit_to(limit, now)
    return bucket


def _refusal(name: str, limit: int, what: str, wait: float) -> RateLimited:
    """The 429. `wait`: seconds after which it would pass if nobody else comes before; infinite where it never would."""
    message = f"This API key's limit `{name}` is {limit}, {what}."
    if math.isinf(wait):
        return RateLimited(message, limit=name, headers={"x-should-retry": "false"})
    milliseconds = max(1, math.ceil(1000 * wait))
    headers = {"Retry-After": str(math.ceil(milliseconds / 1000)), "retry-after-ms": str(milliseconds)}
    return RateLimited(f"{message} Try again in {duration(wait)}.", limit=name, headers=headers)


def _told(of: bytes, bucket: LeakyBucket, reserved: int, now: float) -> Headers:
    used = bucket.used(now)
    remaining = max(0, math.floor(bucket.limit - used - reserved + _EPSILON))
    values = (
        (b"limit", str(bucket.limit)),
        (b"remaining", str(remaining)),
        (b"reset", duration(60 * (used + reserved) / bucket.limit)),
    )
    return [(b"x-ratelimit-" + name + b"-" + of, text.encode()) for name, text in values]


def duration(seconds: float) -> str:
    """As OpenAI's headers write it: `12ms`, `8.64s`, `6m0s`, `1h2m3s`; rounded up."""
    milliseconds = math.ceil(1000 * seconds - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    minutes, left = divmod(math.ceil(milliseconds / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + f"{minutes}m{left}s"
