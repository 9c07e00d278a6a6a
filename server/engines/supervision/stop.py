"""The end of all processes of a server, by one deadline: engines first, which save what only they have, then the keeper."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from server.engines.supervision.keeper import KeeperReport
from server.engines.supervision.supervisor import STOP_GRACE_SECONDS, Supervisor

KEEPER_SECONDS = 2.0  # of the last ones, for the keeper's end


class Keepers(Protocol):
    """What keeps KV for several engines."""

    async def run(self) -> None:
        """Look after it until `stop`."""

    def reports(self) -> Mapping[str, KeeperReport]:
        """How each is doing, by the address of its node; that of this machine has none."""

    async def stop(self, flush_seconds: float, grace: float = 2.0) -> None:
        """Let it write for so long what would be lost with it, and end within `grace` seconds more."""


class StopDeadline:
    """When a stop is over, for everybody who takes part in it: what one takes longer, the next has less.

    Args:
        seconds: for open requests to end, and for KV to be written, from now on (drain_seconds). Beyond them `STOP_GRACE_SECONDS`
            are for processes to end by themselves.
        clock: seconds, monotonic.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._drained = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds of those that were given."""
        return max(0.0, self._drained - self._clock())

    @property
    def grace(self) -> float:
        """Seconds beyond those."""
        return STOP_GRACE_SECONDS - max(0.0, self._clock() - self._drained)


async def stop_all(
    engines: Iterable[Supervisor], keeper: Keepers | None, deadline: StopDeadline, *, outlived: bool
) -> None:
    """Have them end by the deadline; what has not is killed.

    Args:
        engines: of which there is at least one.
        keeper: of their KV tiers, where they share them.
        deadline: for all of them together.
        outlived: whether a tier survives the server, so that KV is worth writing.
    """
    grace = deadline.grace - (KEEPER_SECONDS if keeper else 0.0)
    flush_seconds = deadline.left if outlived else None
    await asyncio.gather(*(each.stop(grace=grace, flush_seconds=flush_seconds) for each in engines))
    if keeper is not None:
        await keeper.stop(deadline.left, grace=max(KEEPER_SECONDS / 2, deadline.grace))
