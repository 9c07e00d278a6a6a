"""Memory that all GPUs of a rank group can read and write, for sums in one launch (`kernels.gpu.rank_sum`).

torch makes it (`torch.distributed._symmetric_memory`: CUDA's virtual memory, whose handles the ranks exchange). Where a GPU cannot
reach another, or torch has no such memory, there is none, on any rank.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import torch
import torch.distributed as dist

from kernels.gpu.rank_sum import PeerMemory, flag_bytes, part_bytes, pieces

log = logging.getLogger("headrace.engine")


class SharedMemory(Protocol):
    """Makes memory that all ranks can reach. Contract: all ranks make the same calls."""

    def reaches(self, ranks: int) -> bool:
        """Whether this rank's device reaches the memory of all others, whose numbers are those below `ranks`."""
        ...

    def make(self, nbytes: int) -> tuple[list[int], object]:
        """Addresses, as this rank sees them, of as many zeros on each rank; and what keeps them there.

        Raises:
            RuntimeError: it cannot be made.
        """
        ...


class SymmetricMemory:
    """torch's, of one GPU for each rank (`engine.gpu.loader.rank_device`), in the default process group."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def reaches(self, ranks: int) -> bool:
        """As the driver says."""
        own, others = self._device.index, (other for other in range(ranks) if other != self._device.index)
        return torch.cuda.device_count() >= ranks and all(
            torch.cuda.can_device_access_peer(own, other) for other in others
        )

    def make(self, nbytes: int) -> tuple[list[int], object]:
        """Make this rank's piece, and exchange its handle with all others."""
        import torch.distributed._symmetric_memory as symmetric

        world = dist.group.WORLD
        assert world is not None, "join the group first"
        memory = symmetric.empty(nbytes, dtype=torch.uint8, device=self._device)
        memory.zero_()
        handle = symmetric.rendezvous(memory, world)
        torch.cuda.synchronize(self._device)
        return list(handle.buffer_ptrs), (memory, handle)


def peer_memory(
    shared: SharedMemory, rank: int, ranks: int, device: torch.device, least: Callable[[int], int]
) -> PeerMemory | None:
    """This rank's view of such memory; None, on all ranks, if one of them has none. Collective.

    Args:
        shared: makes it.
        rank: of this process.
        ranks: how many there are.
        device: this rank's.
        least: of all ranks' numbers (`ProcessGroup.least`), which also waits for them.
    """
    if not least(shared.reaches(ranks)):
        log.info("sums over %d ranks go through NCCL: they cannot all reach each other's memory", ranks)
        return None
    addresses: list[int] = []
    kept: object = None
    try:
        addresses, kept = shared.make(part_bytes() + flag_bytes(ranks))
    except (RuntimeError, ImportError, AttributeError) as error:  # what torch has there is not for others, by its name
        log.warning("sums over %d ranks go through NCCL: no memory that all can reach: %s", ranks, error)
    if not least(len(addresses) == ranks):  # when it returns, all have zeros
        return None
    parts = torch.tensor(addresses, dtype=torch.int64, device=device)
    turns = torch.zeros(pieces(), dtype=torch.int32, device=device)
    return PeerMemory(rank, ranks, parts, parts + part_bytes(), turns, kept)
