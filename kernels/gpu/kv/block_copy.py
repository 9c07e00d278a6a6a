"""Copies whole KV blocks between two pools: device to pinned host and back, host to host, device to device.

A block is one contiguous range, so it takes one copy, and neighbours on both sides are copied together (as in FastSwitch, arXiv
2411.18424). Between host and device, each run of neighbours is one asynchronous copy, all on the copier's own stream: the copy
engines move them while kernels compute. Within a device, a single launch of a Triton kernel moves all blocks, since separate
copies would each pay for a launch and reach full bandwidth only with large blocks.

Floor: between host and device, bytes over the rate of one large pinned copy (about 55 GB/s on PCIe 5 x16): a Llama-3-8B block of
32 tokens in bf16 is 4 MiB, 76 us, against the few microseconds that issuing a copy takes. Within a device, twice the bytes over
memory bandwidth.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.runtime import Variant, sent
from kernels.runs import joined

WORDS = 4096  # words of 4 bytes per program: 8 loads of 16 bytes in flight for each of 128 threads


@triton.jit(do_not_specialize=["count"])
def _copy_blocks(source, target, pairs, count, chunks, words, WORDS: tl.constexpr):
    pair = tl.program_id(0) // chunks
    column = tl.program_id(0) % chunks * WORDS + tl.arange(0, WORDS)
    inside = column < words
    from_block, to_block = tl.load(pairs + pair), tl.load(pairs + count + pair)  # int64, and so are the offsets
    values = tl.load(source + from_block * words + column, inside)
    tl.store(target + to_block * words + column, values, inside)


def copy_blocks(source: Tensor, target: Tensor, pairs: Tensor) -> None:
    """Copy blocks `pairs[0]` of `source` onto blocks `pairs[1]` of `target`, all in one launch on the current stream.

    Args:
        source: [blocks, ...] in any type, contiguous.
        target: [other blocks, ...], alike but for the number of blocks.
        pairs: int64 [2, n], contiguous, on the same device. No block is a target twice, none both source and target of one pool.
    """
    count = pairs.shape[1]
    source, target = _words(source), _words(target)
    words = source.shape[1]
    chunks = triton.cdiv(words, WORDS)
    if count and words:
        _copy_blocks[(count * chunks,)](source, target, pairs, count, chunks, words, WORDS=WORDS, num_warps=4)


def reference_copy_blocks(source: Tensor, target: Tensor, pairs: Tensor) -> None:
    """What `copy_blocks` does, in plain torch."""
    target[pairs[1]] = source[pairs[0]]


def _words(pool: Tensor) -> Tensor:
    """[blocks, words] over the same memory, in words of 4 bytes if a block is a whole number of them, else bytes."""
    flat = pool.view(len(pool), -1)
    return flat.view(torch.uint8 if flat.shape[1] * flat.element_size() % 4 else torch.int32)


@dataclass(frozen=True, slots=True)
class CopyHandle:
    """A copy in progress. Until it is done, its source blocks must keep their content and nobody may read its targets.

    Attributes:
        blocks: how many it moves.
        copies: how many copies that takes per tensor: one per run of neighbours, or 1 launch.
    """

    blocks: int
    copies: int
    _event: torch.cuda.Event | None  # None if done already

    @property
    def done(self) -> bool:
        """Whether all blocks have arrived. Never waits."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Block this thread until all blocks have arrived."""
        if self._event is not None:
            self._event.synchronize()

    def before(self, stream: torch.cuda.Stream) -> None:
        """Make everything submitted to `stream` from now on run after the copy; this thread does not wait."""
        if self._event is not None:
            stream.wait_event(self._event)


class BlockCopier:
    """Moves blocks from one pool to another, on a stream of its own.

    A pool may be several tensors (values and their scales): block i is row i of each. Two directions take two copiers, which can
    then run at the same time.

    Args:
        pairs: (source, target) tensors [blocks, ...], contiguous, alike but for the number of blocks. All sources are on one
            device and all targets on one device; tensors on the host must be pinned if the other side is a GPU.

    Attributes:
        blocks: number of blocks moved so far.
        copies: number of copies so far, per tensor.

    Raises:
        ValueError: the tensors are not such pools.
    """

    def __init__(self, *pairs: tuple[Tensor, Tensor]) -> None:
        _check_pools(pairs)
        self._pairs = pairs
        self._from, self._to = (pool.device for pool in pairs[0])
        self._one_pool = any(source.data_ptr() == target.data_ptr() for source, target in pairs)
        gpu = self._from if self._from.type == "cuda" else self._to
        self._stream = torch.cuda.Stream(gpu) if gpu.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.blocks = 0
        self.copies = 0

    @property
    def blocks_per_copy(self) -> float:
        """The mean so far: 1 if no blocks were neighbours; 0 before the first copy."""
        return self.blocks / self.copies if self.copies else 0.0

    def copy(self, pairs: Sequence[tuple[int, int]], *, after: Iterable[CopyHandle] = ()) -> CopyHandle:
        """Start moving blocks. Returns at once if a GPU takes part, else when done.

        The copy begins after everything that is now in the GPU's current stream (the kernels that filled the source or still read
        the target), and after the copies `after` (for example, those that filled host memory that this one reads).

        Args:
            pairs: source block and target block each, in any order.
            after: handles of copies that must come first.

        Raises:
            ValueError: a block is not in its pool, is a target twice, or is both source and target in one pool.
        """
        self._check(pairs)
        if self._stream is None:
            copies = self._run(pairs)
            event = None
        else:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
            for handle in after:
                handle.before(self._stream)
            copies = self._run(pairs)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        self.blocks += len(pairs)
        self.copies += copies
        return CopyHandle(len(pairs), copies, event)

    def _run(self, pairs: Sequence[tuple[int, int]]) -> int:
        """Submit all copies to the stream. Returns how many there are."""
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            if self._stream is not None and self._from == self._to:
                return self._launch(pairs)
            runs = joined(pairs)
            for source, target in self._pairs:
                for run in runs:
                    there = target[run.target : run.target + run.count]
                    there.copy_(source[run.source : run.source + run.count], non_blocking=True)
            return len(runs)

    def _launch(self, pairs: Sequence[tuple[int, int]]) -> int:
        if not pairs:
            return 0
        index = sent(torch.tensor(pairs, dtype=torch.int64).t().contiguous(), self._to)
        for source, target in self._pairs:
            copy_blocks(source, target, index)
        return 1

    def _check(self, pairs: Sequence[tuple[int, int]]) -> None:
        sources, targets = {source for source, _ in pairs}, {target for _, target in pairs}
        for name, used, pool in (("source", sources, self._pairs[0][0]), ("target", targets, self._pairs[0][1])):
            if used and not 0 <= min(used) <= max(used) < len(pool):
                raise ValueError(f"{name} blocks {min(used)}..{max(used)} of a pool that has 0..{len(pool) - 1}")
        if len(targets) < len(pairs):
            raise ValueError("a block is a target twice: it is undefined which content it would keep")
        if self._one_pool and (both := sources & targets):
            raise ValueError(
                f"blocks {sorted(both)[:5]} are both source and target in one pool: copy in two calls, one after the other"
            )


def _check_pools(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    if not pairs:
        raise ValueError("a copier needs at least one pair of tensors")
    for source, target in pairs:
        if source.dtype != target.dtype or source.shape[1:] != target.shape[1:]:
            raise ValueError(
                f"blocks {tuple(source.shape[1:])} {source.dtype} do not fit {tuple(target.shape[1:])} {target.dtype}"
            )
        if not (source.is_contiguous() and target.is_contiguous()):
            raise ValueError("pools must be contiguous, so that a block is one range of memory")
        if "cuda" in (source.device.type, target.device.type):
            unpinned = [pool for pool in (source, target) if pool.device.type == "cpu" and not pool.is_pinned()]
            if unpinned:
                raise ValueError(
                    "host memory must be pinned (pin_memory=True): copies from pageable memory are not asynchronous"
                )
    for side in zip(*pairs, strict=True):
        if len({(pool.device, len(pool)) for pool in side}) > 1:
            raise ValueError("all tensors of one side must have the same number of blocks, on the same device")


def _variant(name: str, words: str, aligned: tuple[str, ...]) -> Variant:
    return Variant(
        name,
        _copy_blocks,
        {"source": words, "target": words, "pairs": "*i64"} | dict.fromkeys(("count", "chunks", "words"), "i32"),
        {"WORDS": WORDS},
        warps=4,
        aligned=("source", "target", "pairs", *aligned),
    )


VARIANTS: tuple[Variant, ...] = (
    _variant("whole 64 bytes", "*i32", ("words",)),
    _variant("whole words", "*i32", ()),
    _variant("bytes", "*u8", ()),
)
