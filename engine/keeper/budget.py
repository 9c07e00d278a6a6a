"""What the tiers of one machine may take."""

from dataclasses import dataclass
from pathlib import Path

# For each engine, though the host tier be smaller, or none: the disk is read and written through them.
_LEAST_SLOTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperBudget:
    """Of all engines together.

    Attributes:
        slab: bytes of blocks in memory; 0: no such tier.
        folder: of the disk tier; None: there is none.
        disk: bytes that the folder may take.
        engines: how many there will be.
    """

    slab: int
    folder: Path | None = None
    disk: int = 0
    engines: int = 1

    def slots(self, block_bytes: int) -> int:
        """Blocks in memory."""
        slots = self.slab // block_bytes
        return slots if self.folder is None else max(slots, _LEAST_SLOTS * self.engines)
