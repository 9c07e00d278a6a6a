"""Requests for which another engine still saves KV to a tier that both share: they are admitted when it is there, or in vain.

What belongs here: what is missing, and how long it is waited for. Never: loads, who runs, a clock.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scheduler.kv.block_pool import BlockPool, IntegrityError
from scheduler.kv.tiers.tier_list import TierList
from scheduler.types.request import Request


@dataclass(slots=True)
class _Expectation:
    keys: Sequence[bytes]
    until: float
    seen: int = 0  # leading ones that were there when they were looked for


class ExpectedKv:
    """What waiting requests of one scheduler expect. Times are seconds of the caller's clock.

    Args:
        pool: the device's.
        tiers: those below the device.
    """

    def __init__(self, pool: BlockPool, tiers: TierList) -> None:
        self._pool = pool
        self._tiers = tiers
        self._open: dict[str, _Expectation] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, request: Request) -> bool:
        return request.request_id in self._open

    def add(self, request: Request, keys: Sequence[bytes], until: float) -> None:
        """The request waits for these contents, which form a prefix, but no longer than that. It does not without a tier that
        others fill and that has room for all of them."""
        if keys and any(tier.shared and len(keys) * tier.block_bytes <= tier.capacity for tier in self._tiers):
            self._open[request.request_id] = _Expectation(keys, until)

    def look(self, now: float) -> None:
        """Forget those whose contents are there, and those whose time is over."""
        for name, expected in list(self._open.items()):
            if expected.until <= now or self._all_there(expected):
                del self._open[name]

    def drop(self, request: Request) -> None:
        """It has ended."""
        self._open.pop(request.request_id, None)

    def check_integrity(self, waiting: Iterable[str]) -> None:
        """Compare with the queue.

        Raises:
            IntegrityError: one that does not wait expects something.
        """
        if strangers := self._open.keys() - set(waiting):
            raise IntegrityError(f"KV is expected for {sorted(strangers)}, which do not wait")

    def _all_there(self, expected: _Expectation) -> bool:
        keys = expected.keys
        while expected.seen < len(keys) and self._there(keys[expected.seen]):
            expected.seen += 1
        return expected.seen == len(keys) or not any(tier.shared for tier in self._tiers)

    def _there(self, key: bytes) -> bool:
        return self._pool.resident(key) or self._tiers.holder(key) is not None
