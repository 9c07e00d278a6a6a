"""Which replica gets a request. A router sees prompts, and how many requests it has open at each replica.

It knows no output length, no queue inside a replica and no block pool; what a replica has cached it must remember itself. Replicas
have roles: a request is sent to one that takes the phase it is in, its prompt or its decodes.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from enum import StrEnum
from itertools import count
from typing import Protocol

from scheduler.types.block_hash import block_hash, root_hash
from scheduler.types.step import ChunkPhase


class Role(StrEnum):
    """Which phases of a request a replica takes."""

    MIXED = "mixed"
    PREFILL = "prefill"
    DECODE = "decode"

    def takes(self, phase: ChunkPhase) -> bool:
        """Whether a request in this phase may be sent there."""
        return self is Role.MIXED or self.value == phase.value


class ReplicaView(Protocol):
    """What a router sees of a replica."""

    @property
    def role(self) -> Role:
        """Which phases it takes."""
        ...

    @property
    def available(self) -> bool:
        """Whether it takes anything now."""
        ...

    @property
    def open(self) -> int:
        """Requests that have not ended."""
        ...


class Router(Protocol):
    """Chooses for each request once a phase, in the order of arrival."""

    def choose(self, prompt_ids: list[int], replicas: Sequence[ReplicaView], phase: ChunkPhase, salt: str = "") -> int:
        """The index of the replica that gets the request. The same replicas are given each time, in the same order.

        Args:
            prompt_ids: of the request.
            replicas: all there are; only those that are available and take the phase can be chosen.
            phase: that the request is in.
            salt: prefixes are shared only between requests with equal salts.

        Raises:
            ValueError: no replica takes the phase.
        """
        ...


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._turn = count()

    def choose(self, prompt_ids: list[int], replicas: Sequence[ReplicaView], phase: ChunkPhase, salt: str = "") -> int:
        """The next in turn of those that take the phase."""
        able = _able(replicas, phase)
        return able[next(self._turn) % len(able)]


class LeastLoaded:
    """The fewest open requests; the first of several."""

    def choose(self, prompt_ids: list[int], replicas: Sequence[ReplicaView], phase: ChunkPhase, salt: str = "") -> int:
        """The least loaded of those that take the phase."""
        return _least_loaded(replicas, _able(replicas, phase))


class PrefixAware:
    """The replica to which the longest known prefix went before, unless it is much busier than the least loaded one. Of equally
    loaded ones the one that was sent the fewest blocks.

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
        self._sent: OrderedDict[tuple[ChunkPhase, bytes], int] = OrderedDict()
        self._held: Counter[int] = Counter()  # blocks of those by replica

    def choose(self, prompt_ids: list[int], replicas: Sequence[ReplicaView], phase: ChunkPhase, salt: str = "") -> int:
        """The replica of the longest prefix remembered, or the least loaded; remembers the prompt's blocks as sent there."""
        keys = [(phase, key) for key in self._keys(prompt_ids, salt)]
        able = _able(replicas, phase)
        least = min(
            able, key=lambda index: (replicas[index].open, self._held[index])
        )  # so that idle ones share the prefixes
        chosen = least
        for key in reversed(keys):
            if (found := self._sent.get(key)) is not None:
                if found in able and replicas[found].open <= replicas[least].open + self._slack:
                    chosen = found
                break
        for key in keys:
            self._forget(key)
            self._sent[key] = chosen
        self._held[chosen] += len(keys)
        while len(self._sent) > self._capacity * len(replicas):
            self._forget(next(iter(self._sent)))
        return chosen

    def _forget(self, key: tuple[ChunkPhase, bytes]) -> None:
        if (held_by := self._sent.pop(key, None)) is not None:
            self._held[held_by] -= 1

    def _keys(self, prompt_ids: list[int], salt: str) -> list[bytes]:
        size, keys = self._block_size, [root_hash("router", salt)]
        for begin in range(0, len(prompt_ids) - size + 1, size):
            keys.append(block_hash(keys[-1], prompt_ids[begin : begin + size]))
        return keys[1:]


def _able(replicas: Sequence[ReplicaView], phase: ChunkPhase) -> list[int]:
    """The indices of those that take the phase, at least one."""
    able = [index for index, replica in enumerate(replicas) if replica.available and replica.role.takes(phase)]
    if not able:
        roles = ", ".join(sorted({replica.role for replica in replicas if replica.available})) or "none"
        raise ValueError(f"no available replica takes the phase {phase.value!r} (roles: {roles})")
    return able


def _least_loaded(replicas: Sequence[ReplicaView], able: Sequence[int]) -> int:
    """Of the `able`, the index of the one with the fewest open requests, the first of several."""
    return min(able, key=lambda index: replicas[index].open)


ROUTERS: dict[str, Callable[[], Router]] = {
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "prefix-aware": PrefixAware,
}
