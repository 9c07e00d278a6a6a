"""The shared memory as an engine has it: mapped, with the engine's connections to the keeper."""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from engine.keeper.client import KeeperClient, Lane
from engine.keeper.messages import Commit, Done, GivenSlots, Reserve
from engine.kv_store.disk.record import checksum
from engine.kv_store.host_memory import pin, unpin
from engine.kv_store.row_copy import RowCopy, RowPairs
from engine.kv_store.store import Rows, StoreLost, StoreRefused
from kernels.runs import joined
from scheduler.types.block_hash import BlockKey


class SharedSlab:
    """For the tiers of one engine: the first of them opens it, the last to be closed closes it.

    Args:
        client: says where the slots are.
        block_bytes: of each.
        pinned: keep them where they are, for a GPU's copy engines.

    Attributes:
        client: connected.
        rows: uint8 [slots, block bytes].
        users: tiers that have it open.

    Raises:
        StoreLost: the keeper is not there, or refuses.
        StoreRefused: it refuses for good, or the memory cannot be mapped or pinned.
    """

    def __init__(self, client: KeeperClient, block_bytes: int, *, pinned: bool) -> None:
        self.client = client
        self.users = 0
        self._welcome = client.connect()
        offset, size = self._welcome.offset, self._welcome.slots * block_bytes
        try:
            pages = mmap.mmap(client.address.slab, offset + size)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with suppress(OSError):  # a kernel without huge pages in shared memory: slower, not wrong
                    pages.madvise(mmap.MADV_HUGEPAGE)
            self.rows: Tensor = torch.frombuffer(pages, dtype=torch.uint8)[offset:].view(-1, block_bytes)
            if pinned:
                pin(self.rows)
        except (OSError, ValueError, RuntimeError) as error:
            how = "pinned" if pinned else "mapped"
            raise StoreRefused(f"{size / 2**30:.2f} GiB of shared memory cannot be {how} ({error})") from error
        self._pinned = pinned
        self._copy = RowCopy(self.rows)

    def save(self, lane: Lane, block_keys: Sequence[BlockKey], rows: Rows) -> tuple[list[int], int]:
        """Copy these blocks into slots that the keeper gives. Nobody finds them before all is done.

        Returns:
            The answer for each: a slot, `KNOWN` or `NOT_THERE`. And how many ranges of memory were copied.
        """
        asked = list(zip(block_keys, rows.ids, strict=True))
        slots = lane.ask(Reserve(block_keys=list(block_keys)), GivenSlots).slots
        pairs = [(row, slot) for (_, row), slot in zip(asked, slots, strict=True) if slot >= 0]
        checksums: list[int | None] = [None] * len(pairs)
        try:
            checksums = list(self._filled(torch.as_tensor(rows.pool), pairs))
        finally:
            lane.ask(Commit(checksums=checksums), Done)
        return slots, len(joined(pairs))

    def _filled(self, pool: Tensor, pairs: RowPairs) -> Iterator[int]:
        """Copy rows of the pool to slots; their checksums. On a CPU a block is added up while it is in the cache."""
        at_once = len(pairs) if pool.is_cuda else 1
        for begin in range(0, len(pairs), at_once or 1):
            part = pairs[begin : begin + at_once]
            self._copy.to_slab(pool, part)
            yield from (checksum(self.rows[slot].numpy().data) for _, slot in part)

    def load(self, slots: Sequence[int], rows: Rows) -> int:
        """Copy slots that are lent to rows; a negative one is none. Returns how many ranges of memory were copied."""
        pairs = [(slot, row) for slot, row in zip(slots, rows.ids, strict=True) if slot >= 0]
        return self._copy.from_slab(torch.as_tensor(rows.pool), pairs)

    def connect(self) -> None:
        """Connect again, if the connection was lost.

        Raises:
            StoreLost: there is no keeper, or it has divided the memory in another way.
        """
        if self.client.connect() != self._welcome:
            raise StoreLost("the keeper of the KV tiers has divided its memory anew")

    def close(self) -> None:
        """One tier is closed. With the last one the connections end, and the memory is given back."""
        self.users -= 1
        if self.users:
            return
        self.client.close()
        if self._pinned:
            unpin(self.rows)
        self.rows = self.rows[:0].clone()
        self._copy = RowCopy(self.rows)
