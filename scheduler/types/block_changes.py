"""Which KV contents came to and went from a device and the tiers below it, for whoever keeps an index of them elsewhere."""

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class StoredBlocks:
    """Blocks that came to a tier."""

    tier: str
    names: list[bytes]  # hashes of their contents, see `scheduler/types/block_hash.py`
    tokens: list[int]  # in each; less than a block holds: only the request that was preempted there can use it
    parents: list[bytes | None]  # of each; None: not known. A prompt's first block has the root as its parent


@dataclass(slots=True, kw_only=True)
class RemovedBlocks:
    """Blocks that went."""

    tier: str
    names: list[bytes]


@dataclass(slots=True, kw_only=True)
class BlockChanges:
    """What changed in an engine's device and tiers since the last one; sent after `PublishBlocks`, before the outputs of the step
    that brought it. No name is in both lists of one tier."""

    stored: list[StoredBlocks] = field(default_factory=list)
    removed: list[RemovedBlocks] = field(default_factory=list)
    anew: bool = False  # what was told before holds no longer: this is the beginning of all there is
