"""The sum over ranks in one launch: every rank reads the parts of all others through memory that all can see, and adds them itself.

x [n] of each rank becomes the sum [n] on each, in x's type: parts are added in the order of the ranks, in fp32, and rounded once.
So all ranks have the same bits, and a row has them in any batch: which program adds an element changes nothing.

A rank has one piece of such memory (`PeerMemory`): two halves for its parts, and flags. A program has `BLOCK` elements, always the
same of them. It stores its rank's part into a half, tells every other rank so by a flag of its own there, waits until all others
have told it the same, and adds. Flags hold the number of the turn, which each program counts for itself, on the device: a CUDA
graph that holds this kernel can run any number of times. Halves take turns, so that a rank that is ahead by one sum overwrites
nothing: it cannot be ahead by two, since for the next sum it waits for this one's reader.

Floor: n * size of x * (ranks - 1) bytes through each rank's links (8 rows of 4096 in bf16 and 8 ranks: 459 KB, 1 us at 450 GB/s)
after one flag's way there, some 2 us; NCCL's ring takes 2 * (ranks - 1) such ways. With more bytes NCCL moves less: 2 * n * size.

Source: one-shot all-reduce as in TensorRT-LLM and vLLM's custom all-reduce; flags by release and acquire at the scope of the system
(PTX ISA, memory consistency model).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.runtime import Variant

BLOCK = 2048  # elements of a program
LARGEST = 512 << 10  # bytes of x: with more, NCCL is no slower
FLAG_BYTES = 4


@dataclass(frozen=True, slots=True)
class PeerMemory:
    """One rank's view of the memory that all ranks can read and write.

    Attributes:
        rank: whose view.
        ranks: how many there are.
        parts: int64 [ranks], on the device: addresses of each rank's memory for its parts, of `part_bytes()`.
        flags: int64 [ranks]: addresses of each rank's flags, of `flag_bytes(ranks)`, zero at first.
        turns: int32 [pieces], this rank's own, zero at first: sums so far, of each program.
        kept: what keeps that memory where it is.
    """

    rank: int
    ranks: int
    parts: Tensor
    flags: Tensor
    turns: Tensor
    kept: object = None


def pieces() -> int:
    """Programs of the largest sum, whose elements have two bytes."""
    return LARGEST // (2 * BLOCK)


def part_bytes() -> int:
    """Bytes of a rank's two halves."""
    return 2 * LARGEST


def flag_bytes(ranks: int) -> int:
    """Bytes of a rank's flags: one for each rank and program."""
    return ranks * pieces() * FLAG_BYTES


@triton.jit(do_not_specialize=["size", "rank"])
def _rank_sum(x, out, parts, flags, turns, size, rank, room, pieces, RANKS: tl.constexpr, BLOCK: tl.constexpr):
    """Elements [BLOCK * i, ..) of program i. `room` elements are a half, `pieces` flags a rank's."""
    piece = tl.program_id(0)
    place = piece * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    turn = tl.load(turns + piece) + 1
    half = (turn & 1) * room
    element: tl.constexpr = x.dtype.element_ty
    mine = tl.multiple_of(tl.load(parts + rank).to(tl.pointer_type(element)), 16)
    tl.store(mine + half + place, tl.load(x + place, inside, 0.0), inside)
    tl.debug_barrier()  # one thread says for all of them that the part is there
    for other in tl.static_range(RANKS):
        flag = tl.load(flags + other).to(tl.pointer_type(tl.int32))
        tl.atomic_xchg(flag + rank * pieces + piece, turn, sem="release", scope="sys")
    own = tl.load(flags + rank).to(tl.pointer_type(tl.int32)) + piece
    for other in tl.static_range(RANKS):
        # Another may be a turn ahead; and turns are compared so that they may pass 2^31.
        while tl.atomic_add(own + other * pieces, 0, sem="acquire", scope="sys") - turn < 0:
            pass
    tl.debug_barrier()
    for other in tl.static_range(RANKS):
        part = tl.multiple_of(tl.load(parts + other).to(tl.pointer_type(element)), 16)
        # Past L1, which knows nothing of what others write.
        number = tl.load(part + half + place, inside, 0.0, cache_modifier=".cg").to(tl.float32)
        if other == 0:
            total = number
        else:
            total += number
    tl.store(out + place, total.to(element), inside)
    tl.store(turns + piece, turn)


def fits(x: Tensor) -> bool:
    """Whether x is small enough for one launch, and its elements are of 16 or 32 bits."""
    return x.nbytes <= LARGEST and x.dtype in (torch.bfloat16, torch.float16, torch.float32)


def rank_sum(x: Tensor, memory: PeerMemory) -> Tensor:
    """The sum of all ranks' x, in x's shape and type, on each rank; all must call it in the same order with the same shapes.

    Args:
        x: contiguous; `fits` says whether it may be that large.
        memory: this rank's view.

    Raises:
        ValueError: x is too large, or not contiguous.
    """
    if not fits(x) or not x.is_contiguous():
        raise ValueError(
            f"x is {x.dtype} {list(x.shape)}: must be contiguous 16- or 32-bit floats of {LARGEST} bytes at most"
        )
    out = torch.empty_like(x)
    if x.numel():
        _rank_sum[(triton.cdiv(x.numel(), BLOCK),)](
            x, out, memory.parts, memory.flags, memory.turns, x.numel(), memory.rank, LARGEST // x.element_size(), pieces(),
            RANKS=memory.ranks, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return out


def reference_rank_sum(parts: list[Tensor]) -> Tensor:
    """What `rank_sum` gives on every rank, from the parts of all, in plain torch."""
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part
    return total.to(parts[0].dtype)


def _variant(ranks: int, kind: str) -> Variant:
    pointers = {"x": f"*{kind}", "out": f"*{kind}", "parts": "*i64", "flags": "*i64", "turns": "*i32"}
    return Variant(
        name=f"{ranks} ranks {kind}",
        kernel=_rank_sum,
        signature=pointers | dict.fromkeys(("size", "rank", "room", "pieces"), "i32"),
        constants={"RANKS": ranks, "BLOCK": BLOCK},
        aligned=(*pointers, "room", "pieces"),
    )


VARIANTS = (_variant(4, "bf16"), _variant(8, "bf16"), _variant(8, "fp32"))
