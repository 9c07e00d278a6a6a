"""Which KV contents came to and went from a device and the tiers below it, for whoever keeps an index of them elsewhere."""

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class StoredBlocks:
    """Full blocks of one prefix that came, each the next one's parent."""

    tier: str
    names: list[bytes]  # hashes, see `scheduler/types/block_hash.py`
    parent: bytes | None  # of the first; None: not known. A prompt's first block has the root as its parent


@dataclass(slots=True, kw_only=True)
class RemovedBlocks:
    """Blocks that went."""

    tier: str
    names: list[bytes]


@dataclass(slots=True, kw_only=True)
class BlockChanges:
    """What changed since the last one. No name is in both lists of one tier."""

    stored: list[StoredBlocks] = field(default_factory=list)
    removed: list[RemovedBlocks] = field(default_factory=list)
    anew: bool = False  # what was told before holds no longer: this is the beginning of all there is
