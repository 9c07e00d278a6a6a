"""Rows of bytes from a pool to a slab on the host and back, neighbours in one copy."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from kernels.runs import joined

if TYPE_CHECKING:
    from kernels.gpu.kv.block_copy import BlockCopier

RowPairs = Sequence[tuple[int, int]]  # (source row, target row)


class RowCopy:
    """Copies between `slab`, uint8 [rows, row bytes] on the host, and pools of such rows. Safe for threads.

    On the host numpy copies: it lets other threads run meanwhile and starts none of its own (torch would start a team of threads
    for a large copy, beside those that compute the step). From and to a GPU its copy engines do; the slab has to be pinned.
    """

    def __init__(self, slab: Tensor) -> None:
        self._slab = slab
        self._links: dict[int, GpuLink] = {}  # by the pool's address: there is one, or few
        self._lock = threading.Lock()

    def to_slab(self, pool: Tensor, pairs: RowPairs) -> int:
        """Copy rows of `pool` to rows of the slab, and wait for them; returns the number of copies.

        Raises:
            ValueError: the pool's rows are not the slab's, or there is no such row.
            RuntimeError: the GPU failed.
        """
        self._check(pool, [source for source, _ in pairs])
        return self._link(pool).to_slab(pairs) if pool.is_cuda else _copy(pool, self._slab, pairs)

    def from_slab(self, pool: Tensor, pairs: RowPairs) -> int:
        """Copy rows of the slab to rows of `pool`, in the same way."""
        self._check(pool, [target for _, target in pairs])
        return self._link(pool).from_slab(pairs) if pool.is_cuda else _copy(self._slab, pool, pairs)

    def _check(self, pool: Tensor, ids: list[int]) -> None:
        if pool.dtype != self._slab.dtype or pool.ndim != 2 or pool.shape[1] != self._slab.shape[1]:
            raise ValueError(
                f"rows {pool.dtype} {tuple(pool.shape)} instead of {self._slab.dtype} [n, {self._slab.shape[1]}]: "
                "pass a view of the pool as bytes"
            )
        if not pool.is_contiguous():
            raise ValueError("the pool must be contiguous, so that neighbouring rows are one range of memory")
        if ids and not 0 <= min(ids) <= max(ids) < len(pool):
            raise ValueError(f"rows {min(ids)}..{max(ids)} of a pool that has 0..{len(pool) - 1}")

    def _link(self, pool: Tensor) -> "GpuLink":
        with self._lock:
            link = self._links.get(pool.data_ptr())
            if link is None:
                link = self._links[pool.data_ptr()] = GpuLink(pool, self._slab)
            return link


class GpuLink:
    """Copies between the slab and one pool on a GPU, each direction on a stream of its own.

    A copy begins after what the calling thread's current stream holds, and the call returns when it has ended.
    """

    def __init__(self, pool: Tensor, slab: Tensor) -> None:
        from kernels.gpu.kv.block_copy import BlockCopier  # needs triton

        self._to_slab = BlockCopier((pool, slab))
        self._from_slab = BlockCopier((slab, pool))
        self._lock = threading.Lock()  # over handing copies to a stream, not over waiting for them

    def to_slab(self, pairs: RowPairs) -> int:
        """Copy from pool to slab; returns the number of copies."""
        return self._copied(self._to_slab, pairs)

    def from_slab(self, pairs: RowPairs) -> int:
        """Copy from slab to pool; returns the number of copies."""
        return self._copied(self._from_slab, pairs)

    def _copied(self, copier: "BlockCopier", pairs: RowPairs) -> int:
        with self._lock:
            handle = copier.copy(pairs)
        handle.wait()
        return handle.copies


def _copy(source: Tensor, target: Tensor, pairs: RowPairs) -> int:
    runs = joined(pairs)
    read, written = source.numpy(), target.numpy()
    for run in runs:
        np.copyto(written[run.target : run.target + run.count], read[run.source : run.source + run.count])
    return len(runs)
