"""Which KV blocks one replica holds, by the names of their contents, as far as it is known.

A name stands for the tokens of a block, everything before them, the model and the salt of the request
(`scheduler/types/block_hash.py`): whoever does not know the salt can look nothing up. What is missing here is computed though it is
there, and what is here in vain is found to be gone by the replica: either costs time and nothing else.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scheduler.types.block_changes import BlockChanges
from scheduler.types.transfers import DEVICE

MOST_BLOCKS = 2**17  # remembered of one tier; some 25 MB


class KnownBlock(NamedTuple):
    """What is known of a block beside its name."""

    tokens: int
    parent: bytes | None  # None: not known


@dataclass(frozen=True, slots=True)
class HeldBlocks:
    """The leading blocks of a prompt that a replica has: on the device or about to be there, then in a tier below."""

    device: int = 0
    tiers: tuple[str, ...] = ()  # of the blocks behind these, one by one


class BlockIndex:
    """The contents of one replica's device and tiers.

    Args:
        capacity: blocks remembered of each tier; beyond it the one that came first is forgotten.
    """

    def __init__(self, capacity: int = MOST_BLOCKS) -> None:
        self._capacity = capacity
        self._tiers: dict[str, dict[bytes, KnownBlock]] = {DEVICE: {}}
        self._announced: Counter[bytes] = Counter()

    def __len__(self) -> int:
        """Blocks in all tiers."""
        return sum(map(len, self._tiers.values()))

    def announce(self, names: Iterable[bytes]) -> None:
        """A sequence was sent there that is about to compute these, or finds them."""
        self._announced.update(names)

    def withdraw(self, names: Iterable[bytes]) -> None:
        """That sequence has ended, or what it computed has been told."""
        for name in names:
            self._announced[name] -= 1
            if self._announced[name] <= 0:
                del self._announced[name]

    def change(self, changes: BlockChanges) -> None:
        """Contents came and went."""
        if changes.anew:
            self._tiers = {DEVICE: {}}
        for gone in changes.removed:
            known = self._tiers.get(gone.tier, {})
            for name in gone.names:
                known.pop(name, None)
        for came in changes.stored:
            known = self._tiers.setdefault(came.tier, {})
            for name, tokens, parent in zip(came.names, came.tokens, came.parents, strict=True):
                known.pop(name, None)
                known[name] = KnownBlock(tokens, self._parent_of(name) if parent is None else parent)
            while len(known) > self._capacity:
                del known[next(iter(known))]

    def _parent_of(self, name: bytes) -> bytes | None:
        """As another tier knows it."""
        return next((known[name].parent for known in self._tiers.values() if name in known), None)

    def held(self, names: Sequence[bytes]) -> HeldBlocks:
        """How much of a prompt is there, given the names of its leading blocks."""
        device, announced = self._tiers[DEVICE], self._announced
        found = next((at for at, name in enumerate(names) if name not in device and name not in announced), len(names))
        below = [(tier, known) for tier, known in self._tiers.items() if tier != DEVICE]
        tiers: list[str] = []
        for name in names[found:] if below else ():
            tier = next((tier for tier, known in below if name in known), None)
            if tier is None:
                break
            tiers.append(tier)
        return HeldBlocks(found, tuple(tiers))

    def contents(self) -> Iterator[tuple[str, bytes, KnownBlock]]:
        """All that is known, tier by tier."""
        for tier, known in self._tiers.items():
            for name, block in known.items():
                yield tier, name, block

    def clear(self) -> None:
        """The replica starts anew, with nothing."""
        self._tiers = {DEVICE: {}}
        self._announced.clear()
