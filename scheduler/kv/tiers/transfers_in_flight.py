"""The transfers that are planned or under way, and the device's blocks that they hold meanwhile.

What belongs here: which transfer has which blocks, and which request waits for it. Never: why it was planned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scheduler.kv.tiers.tier_list import TierList
from scheduler.types.block_hash import BlockKey
from scheduler.types.transfers import DEVICE, Transfer


@dataclass(slots=True)
class ActiveTransfer:
    """A transfer without a result yet."""

    transfer: Transfer
    held: list[int]  # device blocks that are the transfer's alone
    yielded: bool = False  # a request gave these blocks up: others wait for them
    request_id: str | None = None  # the request that waits for it


class TransfersInFlight:
    """Transfers of one device.

    Args:
        tiers: those whose drops go with the next transfer that concerns them.
    """

    def __init__(self, tiers: TierList) -> None:
        self._tiers = tiers
        self._active: dict[int, ActiveTransfer] = {}
        self._planned: list[Transfer] = []
        self._next_id = 0

    def __len__(self) -> int:
        return len(self._active)

    def __iter__(self) -> Iterator[ActiveTransfer]:
        return iter(self._active.values())

    def __getitem__(self, transfer_id: int) -> ActiveTransfer:
        return self._active[transfer_id]

    def plan(
        self,
        source: str,
        target: str,
        block_keys: Sequence[BlockKey] = (),
        blocks: Sequence[int] = (),
        *,
        held: bool = False,
        yielded: bool = False,
        urgent: bool = False,
        request_id: str | None = None,
    ) -> Transfer:
        """Plan a transfer that starts with the next step.

        Args:
            source: name of the tier it reads.
            target: name of the tier it writes.
            block_keys: keys of the contents.
            blocks: blocks of the device, one for each content, if the device is on one side.
            held: whether the blocks belong to the transfer, which gives them back at its end.
            yielded: whether a request gave them up for others, who wait for them.
            urgent: whether a request waits for it.
            request_id: that request, if it is a load.
        """
        transfer = Transfer(
            transfer_id=self._next_id,
            source=source,
            target=target,
            block_keys=list(block_keys),
            blocks=list(blocks),
            urgent=urgent,
        )
        lower = self._tiers.get(transfer.lower)
        if lower is not None:
            transfer.drops, transfer.pins = lower.take_drops(), lower.take_pins()
            transfer.lookups = lower.take_lookups()
        self._next_id += 1
        self._planned.append(transfer)
        own = list(blocks) if held else []
        self._active[transfer.transfer_id] = ActiveTransfer(transfer, own, yielded, request_id)
        return transfer

    def plan_drops(self) -> None:
        """Plan an empty transfer to each tier that has something to be told and gets no other transfer."""
        for tier in self._tiers:
            if tier.has_word:
                self.plan(DEVICE, tier.name)

    def take(self) -> list[Transfer]:
        """The transfers planned since the last call, for the step with which they start."""
        planned, self._planned = self._planned, []
        return planned

    def end(self, transfer_id: int) -> ActiveTransfer:
        """The transfer's result is in. Returns what is known of it."""
        return self._active.pop(transfer_id)

    def detach(self, transfer_id: int) -> list[int]:
        """No request waits for this load any more: its blocks belong to it until it ends. Returns them."""
        active = self._active[transfer_id]
        active.request_id, active.held, active.yielded = None, list(active.transfer.blocks), True
        return active.held

    # --- what is where ---

    @property
    def yielded(self) -> bool:
        """Whether blocks that a request gave up will be available when their transfers have ended."""
        return any(active.yielded for active in self)

    @property
    def held(self) -> list[list[int]]:
        """Device blocks that transfers hold, a list for each transfer."""
        return [active.held for active in self]

    def to(self, tier: str) -> list[int]:
        """The transfers that are on their way to this tier."""
        return [active.transfer.transfer_id for active in self if active.transfer.target == tier]

    def concern(self, tier: str) -> bool:
        """Whether any of them reads or writes this tier."""
        return any(tier in (active.transfer.source, active.transfer.target) for active in self)
