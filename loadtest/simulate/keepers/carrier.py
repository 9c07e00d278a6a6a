"""Carries KV between one replica and the tiers below it, in simulated time: from or to each tier one transfer after the other.

Beside the steps, which are no slower for it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from loadtest.simulate.keepers.keepers import PoolKeepers
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.router.block_index import BlockIndex
from scheduler.types.transfers import DEVICE, Transfer, TransferResult

Later = Callable[[float, Callable[[float], None]], None]


class Carrier:
    """Of one replica, until that dies.

    Args:
        keepers: what it carries to and from.
        replica: its number.
        later: called with a time, and with what is to happen then.
        ended: called with each result and the time.
    """

    def __init__(
        self, keepers: PoolKeepers, replica: int, later: Later, ended: Callable[[TransferResult, float], None]
    ) -> None:
        self._keepers = keepers
        self._replica = replica
        self._later = later
        self._ended = ended
        self._free: dict[tuple[str, bool], float] = {}  # by tier and direction: until when another is carried
        self._closed = False

    def start(self, transfers: Iterable[Transfer], now: float) -> None:
        """Begin these."""
        for transfer in transfers:
            lane = transfer.lower, transfer.target == DEVICE
            seconds = self._keepers.seconds(transfer)
            end = self._free[lane] = max(now, self._free.get(lane, 0.0)) + seconds
            self._later(end, partial(self._end, transfer, seconds))

    def close(self) -> None:
        """The replica is dead: nothing arrives any more."""
        self._closed = True

    def _end(self, transfer: Transfer, seconds: float, now: float) -> None:
        if not self._closed:
            sizes = self._keepers.sizes(self._replica, transfer)
            self._ended(TransferResult(transfer_id=transfer.transfer_id, sizes=sizes, seconds=seconds), now)


@dataclass(frozen=True, slots=True)
class KeeperLane:
    """The way between one replica and the keepers.

    Attributes:
        keepers: all there are.
        replica: its number.
        later: called with a time, and with what is to happen then.
    """

    keepers: PoolKeepers
    replica: int
    later: Later

    def planner(self, pool: BlockPool) -> TransferPlanner:
        """Plans what goes along it."""
        return self.keepers.planner(self.replica, pool)

    def carrier(self, ended: Callable[[TransferResult, float], None]) -> Carrier:
        """Carries what goes along it."""
        return Carrier(self.keepers, self.replica, self.later, ended)

    def block_index(self) -> BlockIndex:
        """What a router knows of the replica."""
        return self.keepers.block_index(self.replica)
