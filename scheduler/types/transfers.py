"""What crosses between scheduler and transfer worker: which blocks go from one tier to another, and what came of it.

A tier is a place that keeps KV blocks by the name of their content (`scheduler.types.block_hash`) and has a name itself. The
device's blocks are those that steps read and write; the tiers below it hold copies. A transfer never changes content: it makes
named contents resident elsewhere.

What belongs here: plain data. Never: policy, bytes, I/O, time of a wall clock.
"""

from dataclasses import dataclass, field

from scheduler.types.block_hash import BlockKey

DEVICE = "device"  # the name of the tier on top, the only one that is not a store


@dataclass(slots=True, kw_only=True)
class Transfer:
    """Make these contents resident in `target`; they stay in `source`.

    The blocks named here belong to the transfer until its result is absorbed: nobody writes the source's, nobody reads the
    target's. What fills the source's blocks are steps before the one that carries the transfer.
    """

    transfer_id: int
    source: str  # a tier's name, as `target`
    target: str
    block_keys: list[BlockKey]
    blocks: list[int]  # of the device, one for each content, if it is source or target; else empty
    drops: list[bytes] = field(default_factory=list)  # contents the lower tier forgets before the transfer begins
    urgent: bool = False  # somebody waits for it: without rests, whoever runs beside it

    @property
    def lower(self) -> str:
        """The tier that does the work: of a transfer that has the device on one side, the other one; else the target."""
        return self.source if self.target == DEVICE else self.target

    @property
    def hashes(self) -> list[bytes]:
        """Of its contents."""
        return [block_key.hash for block_key in self.block_keys]


@dataclass(slots=True, kw_only=True)
class TransferResult:
    """What a transfer brought. A content that did not arrive is not in the target."""

    transfer_id: int
    sizes: list[int]  # bytes that each content takes in the lower of the two tiers; 0: it did not arrive
    seconds: float = 0.0  # from the first byte to the last, waiting in the queue left out
    copies: int = 0  # ranges of memory or of a file that were copied: neighbours travel together
    lost: str | None = None  # this tier failed as a whole and serves nothing from now on
    gone: list[bytes] = field(default_factory=list)  # hashes of what the source does not have (any more), or damaged
