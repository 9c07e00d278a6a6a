"""Which replica gets a request. A router sees prompts, and how many requests it has open at each replica.

It knows no output length, no queue inside a replica and no block pool; what a replica has cached it must remember itself.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import count
from typing import Protocol

from scheduler.types.block_hash import block_hash, root_hash


class Loaded(Protocol):
    """What a router sees of a replica."""

    @property
    def open(self) -> int:
        """Requests that have not ended."""
        ...


class Router(Protocol):
    """Chooses for each request once, in the order of arrival."""

    def choose(self, prompt_ids: list[int], replicas: Sequence[Loaded]) -> int:
        """The index of the replica that gets the request."""
        ...


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._turn = count()

    def choose(self, prompt_ids: list[int], replicas: Sequence[Loaded]) -> int:  # noqa: D102 - the protocol's
        return next(self._turn) % len(replicas)


class LeastLoaded:
    """The fewest open requests; the first of several."""

    def choose(self, prompt_ids: list[int], replicas: Sequence[Loaded]) -> int:  # noqa: D102 - the protocol's
        return _least(replicas)


class PrefixAware:
    """The replica to which the longest known prefix went before, unless it is much busier than the least loaded one.

    Remembers for each prefix block where it was last sent, and forgets the least recently used. The blocks are hashed as in a
    block pool, so that what it remembers is what a pool can hold.

    Args:
        block_size: tokens of a remembered block.
        capacity: blocks remembered for each replica.
        slack: open requests by which a replica with the prefix may exceed the least loaded one.
    """

    def __init__(self, block_size: int = 32, capacity: int = 20_000, slack: int = 8) -> None:
        self._block_size = block_size
        self._capacity = capacity
        self._slack = slack
        self._sent: OrderedDict[bytes, int] = OrderedDict()

    def choose(self, prompt_ids: list[int], replicas: Sequence[Loaded]) -> int:  # noqa: D102 - the protocol's
        keys = self._keys(prompt_ids)
        least = _least(replicas)
        chosen = least
        for key in reversed(keys):
            if (found := self._sent.get(key)) is not None:
                if replicas[found].open <= replicas[least].open + self._slack:
                    chosen = found
                break
        for key in keys:
            self._sent[key] = chosen
            self._sent.move_to_end(key)
        while len(self._sent) > self._capacity * len(replicas):
            self._sent.popitem(last=False)
        return chosen

    def _keys(self, prompt_ids: list[int]) -> list[bytes]:
        size, keys = self._block_size, [root_hash("router")]
        for begin in range(0, len(prompt_ids) - size + 1, size):
            keys.append(block_hash(keys[-1], prompt_ids[begin : begin + size]))
        return keys[1:]


def _least(replicas: Sequence[Loaded]) -> int:
    loads = [replica.open for replica in replicas]
    return loads.index(min(loads))


ROUTERS: dict[str, Callable[[], Router]] = {
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "prefix-aware": PrefixAware,
}
