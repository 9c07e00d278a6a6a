"""What crosses between scheduler and transfer worker: which blocks go from one tier to another, and what came of it.

A tier is a place that keeps KV blocks by the key of their content (`scheduler.types.block_hash`), and has a name. The device's
blocks are those that steps read and write; the tiers below it hold copies. A transfer never changes content: it makes contents
resident elsewhere.

What belongs here: plain data. Never: policy, bytes, I/O, wall-clock time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from scheduler.types.block_hash import BlockKey

DEVICE = "device"  # the name of the tier on top, the only one that is not a store


@dataclass(slots=True, kw_only=True)
class Transfer:
    """Make these contents resident in `target`; they stay in `source`.

    The blocks named here belong to the transfer until its result is absorbed: nobody writes the source's, nobody reads the
    target's. The source's blocks are filled by steps before the one that carries the transfer.
    """

    transfer_id: int
    source: str  # a tier's name, like `target`
    target: str
    block_keys: list[BlockKey]
    blocks: list[int]  # of the device, one for each content, if it is source or target; else empty
    drops: list[bytes] = field(default_factory=list)  # contents the lower tier forgets before the transfer begins
    pins: list["Pin"] = field(default_factory=list)  # that the lower tier, which evicts by itself, shall know of
    # Prefixes that new requests asked for: that it shall know of.
    lookups: list[Sequence[bytes]] = field(default_factory=list)
    urgent: bool = False  # a request waits for it: no pauses for the sake of what runs beside it

    @property
    def lower(self) -> str:
        """The tier that does the work: the one on the other side if the device is on one; else the target."""
        return self.source if self.target == DEVICE else self.target

    @property
    def hashes(self) -> list[bytes]:
        """The hashes of its contents."""
        return [block_key.hash for block_key in self.block_keys]


class Pin(NamedTuple):
    """A prefix that a request wants kept, present or yet to come."""

    keys: Sequence[bytes]
    until: float  # seconds of the clock that all processes of a machine share


@dataclass(slots=True, kw_only=True)
class TransferResult:
    """The result of a transfer. A content that did not arrive is not in the target."""

    transfer_id: int
    sizes: list[int]  # bytes that each content takes in the lower of the two tiers; 0: it did not arrive
    seconds: float = 0.0  # from the first byte to the last, without waiting in the queue
    copies: int = 0  # ranges of memory or of a file that were copied; adjacent blocks are copied as one
    lost: str | None = None  # this tier failed as a whole and serves nothing from now on
    gone: list[bytes] = field(default_factory=list)  # hashes of what the source no longer has, or has damaged


class TierChanges(NamedTuple):
    """What others did to a tier that several processes share."""

    came: Sequence[tuple[BlockKey, int]]  # contents that are there now, and the bytes that each takes
    went: Sequence[bytes]  # hashes of contents that are not
