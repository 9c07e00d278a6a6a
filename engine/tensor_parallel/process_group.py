"""The processes that compute one model together, seen from one of them. A single process is a group, too.

What belongs here: how tensors are exchanged. Never: which part of a tensor a rank has (`engine.tensor_parallel.shards`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from engine.tensor_parallel.peer_memory import SharedMemory
    from kernels.gpu.rank_sum import PeerMemory

# Renamed in torch 2.13; the old name warns.
_gather_into: Callable[[Tensor, Tensor], object] = (
    getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
)


class ProcessGroup(Protocol):
    """The processes that compute one model, seen from one of them.

    Contract: collective. All ranks make the same calls in the same order with the same shapes; a call returns when this rank may
    use the result. On a GPU it is queued on the current stream.
    """

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many processes there are."""
        ...

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x, the same bits on each; x, which must be contiguous, may be overwritten."""
        ...

    def gather(self, x: Tensor) -> Tensor:
        """Every rank's [n, columns] side by side: [n, size * columns], on each rank."""
        ...

    def least(self, number: int) -> int:
        """The least of all ranks' numbers, on each rank; waits for them all."""
        ...


@dataclass(frozen=True, slots=True)
class SingleProcess:
    """A model in one process: nothing to exchange."""

    rank: int = 0
    size: int = 1

    def sum(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def gather(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def least(self, number: int) -> int:
        """The number itself."""
        return number


class TorchProcessGroup:
    """Ranks over torch.distributed: NCCL between GPUs, gloo between CPUs.

    Args:
        rank: of this process.
        size: of the group.
        rendezvous: where they meet: `tcp://host:port` of rank 0, or `file:///path` of a file that does not exist yet.
        device: where this rank computes; decides the backend.
        timeout: longest wait for the others, when joining and (gloo) in each call, in seconds.
        ordered: add in the order of the ranks. Without it, with more than two ranks, the order depends on where in the batch a row
            lies, and so does its last bit. Costs size / 2 times the bytes, which is not what takes time at decode sizes.
        shared: makes memory that all ranks can reach, where sums that are small enough take one launch; None: torch does, between
            GPUs, if they can reach each other. For more than two ranks, in order.

    Raises:
        ConnectionError: the others did not come.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        rendezvous: str,
        device: torch.device,
        *,
        timeout: float = 600.0,
        ordered: bool = True,
        shared: "SharedMemory | None" = None,
    ) -> None:
        self.rank, self.size = rank, size
        self._gathers = ordered and size > 2
        self._device = device
        gpu = device.type == "cuda"
        if device == torch.device("cuda"):  # without an index, which is what binds the group to a device
            device = torch.device("cuda", torch.cuda.current_device())
        try:
            dist.init_process_group(
                "nccl" if gpu else "gloo",
                init_method=rendezvous,
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=timeout),
                device_id=device if gpu else None,
            )
            self.least(0)  # else a rank with nothing to do could leave while another is still joining
            self._peers = self._peer_memory(shared, device) if self._gathers else None
        except RuntimeError as error:  # torch has types of its own for some failures only
            raise ConnectionError(f"rank {rank} of {size} waited {timeout:g} s at {rendezvous}: {error}") from error

    def sum(self, x: Tensor) -> Tensor:
        """By all-reduce, or in the order of the ranks, in fp32 and rounded once: in one launch, or by gathering all parts."""
        if not self._gathers:
            dist.all_reduce(x)
            return x
        if self._peers is not None:
            from kernels.gpu.rank_sum import fits, rank_sum

            if fits(x):
                total: Tensor = rank_sum(x, self._peers)
                return total
        first, *others = self._all(x)
        total = first.float()
        for part in others:
            total += part
        return total.to(x.dtype)

    def gather(self, x: Tensor) -> Tensor:
        """By all-gather, which lays the ranks one after the other; a transposed copy puts them side by side."""
        return self._all(x.contiguous()).transpose(0, 1).flatten(1)

    def least(self, number: int) -> int:
        """By a gather on the device."""
        return int(self._all(torch.tensor([number], device=self._device)).min())

    def close(self) -> None:
        """Leave the group. The others' next call fails."""
        dist.destroy_process_group()

    def _peer_memory(self, shared: "SharedMemory | None", device: torch.device) -> "PeerMemory | None":
        """Imported where it is needed: on CPUs there may be no Triton."""
        if shared is None and device.type != "cuda":
            return None
        from engine.tensor_parallel.peer_memory import SymmetricMemory, peer_memory

        return peer_memory(shared or SymmetricMemory(device), self.rank, self.size, device, self.least)

    def _all(self, x: Tensor) -> Tensor:
        """[size, ...]: x of each rank."""
        out = x.new_empty((self.size * len(x), *x.shape[1:]))
        _gather_into(out, x)
        return out.view(self.size, *x.shape)
