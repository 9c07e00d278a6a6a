"""Every kernel 50 times over, and each of its rows alone: the same bits. What races, or depends on its company, shows here.

Compiled where there is a GPU; where Triton interprets, twice and in small shapes, which shows that a row stands alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from kernels.gpu.attention.attention_mass import attention_mass
from kernels.gpu.attention.decode import decode_attention
from kernels.gpu.attention.decode_work import plan_decode
from kernels.gpu.attention.merge_states import merge_states
from kernels.gpu.attention.paged import paged_attention
from kernels.gpu.kv.block_copy import copy_blocks
from kernels.gpu.kv.write_kv import write_kv
from kernels.gpu.linear.fp8 import quantize_rows
from kernels.gpu.linear.quantized import KERNEL_ROWS, quantized_linear, unpack
from kernels.gpu.linear.quantized_matrix import pack
from kernels.gpu.linear.split_sums import PartialSums
from kernels.gpu.norm.embedding import embed
from kernels.gpu.norm.rms_norm import last_norm, rms_norm
from kernels.gpu.norm.silu_mul import silu_mul
from kernels.gpu.rank_sum import PeerMemory, part_bytes, pieces, rank_sum
from kernels.gpu.sampling.bitmask import apply_bitmask
from kernels.gpu.sampling.penalties import count_tokens
from kernels.gpu.sampling.sample import BatchSettings, RowSettings, sample
from kernels.gpu.sampling.token_logprobs import token_logprobs
from tests.gpu.kernel_checks import FP8, Batch
from tests.gpu.test_kernels_on_a_gpu import FORMATS, both
from tests.kernels.gpu.attention import test_cascade

TIMES = {"cpu": 2, "cuda": 50}
LONGEST = 9000  # keys


@dataclass
class Repeated:
    """A kernel's launches over some of `count` rows (or sequences, or blocks): their results, one row of each tensor a row."""

    count: int
    run: Callable[[slice], tuple[torch.Tensor, ...]]
    alone: bool = True  # whether a row has the same bits in any company


class Maker:
    """Inputs of a server's shapes on a GPU, of small ones elsewhere and for a sanitizer."""

    def __init__(self, device, large):
        self.device = torch.device(device)
        self.large = large
        self.rows = 70 if self.large else 3
        self.hidden, self.vocab = (4096, 128256) if self.large else (48, 4500)
        self.heads, self.kv_heads, self.dim = (32, 8, 128) if self.large else (4, 2, 16)
        self.dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.rng = torch.Generator().manual_seed(0)

    def normal(self, *shape, dtype=None):
        return torch.randn(*shape, generator=self.rng).to(dtype or self.dtype).to(self.device)

    def whole(self, low, high, *shape, dtype=torch.int64):
        return torch.randint(low, high, shape, generator=self.rng, dtype=dtype).to(self.device)

    def sequences(self, rows, fp8=False):
        """Ragged ones, the last of them long: on a GPU in several parts, and longer than a part of `attention_mass`."""
        lengths = [33, 1 + rows, 700, 129, *[4097, 260, 64] * 6, LONGEST] if self.large else [33, rows, 260]
        lengths = [max(keys, rows) for keys in lengths]
        return Batch(
            self.device,
            [(rows, keys) for keys in lengths],
            heads=(self.heads, self.kv_heads),
            dim=self.dim,
            dtype=self.dtype,
            fp8=fp8,
        ), len(lengths)


def norms(make):
    x, before, weight = (
        make.normal(make.rows, make.hidden),
        make.normal(make.rows, make.hidden),
        make.normal(make.hidden),
    )
    every = torch.arange(make.rows, device=make.device)

    def run(rows):
        last = last_norm(x, weight, 1e-5, before, every[rows])
        return *rms_norm(x[rows], weight, 1e-5, residual=before[rows]), rms_norm(x[rows], weight, 1e-5)[0], last

    return Repeated(make.rows, run)


def small(make):
    gates, table = make.normal(make.rows, 2 * make.hidden), make.normal(300, make.hidden)
    ids = make.whole(0, 300, make.rows)
    return Repeated(make.rows, lambda rows: (silu_mul(gates[rows]), embed(table, ids[rows])))


def written(make, fp8=False):
    """Three tokens of each sequence, in a block of its own."""
    tokens, count = 3, make.rows
    qkv = make.normal(count * tokens, (make.heads + 2 * make.kv_heads) * make.dim)
    angles = make.normal(tokens, make.dim // 2, dtype=torch.float32)
    at = torch.arange(tokens, device=make.device)

    def run(some):
        kv = torch.zeros(count, 2, make.kv_heads, 32, make.dim, dtype=torch.uint8 if fp8 else make.dtype)
        kv, scales = kv.to(make.device), torch.zeros(count, 2, make.kv_heads, device=make.device) if fp8 else None
        blocks = torch.arange(count, device=make.device)[some]
        q = write_kv(
            qkv[some.start * tokens : some.stop * tokens],
            kv.view(FP8) if fp8 else kv,
            at.repeat(len(blocks)),
            (blocks[:, None] * 32 + at).flatten(),
            angles.cos(),
            angles.sin(),
            heads=make.heads,
            kv_heads=make.kv_heads,
            scales=scales,
        )
        return q.unflatten(0, (-1, tokens)), kv[some], *(() if scales is None else (scales[some],))

    return Repeated(count, run)


def decoded(make, fp8=False):
    batch, count = make.sequences(1, fp8)
    q, kv, _, lengths, tables = batch.there

    def run(some):
        starts = torch.arange(len(q[some]), dtype=torch.int32, device=make.device) * tables.shape[1]
        longest = int(batch.host[3][some].max())
        work = plan_decode(
            lengths[some], starts, tables[some].flatten(), kv_heads=make.kv_heads, longest_kv=longest, window=0
        )
        sums = torch.empty(q[some].shape[:2], device=make.device)
        return decode_attention(q[some], kv, work, scale=0.1, scales=batch.scales_there, log_sums=sums), sums

    return Repeated(count, run)


def chunked(make, fp8=False):
    rows = 33 if make.large else 3
    batch, count = make.sequences(rows, fp8)
    q, kv, _, lengths, tables = batch.there

    def run(some):
        mine = q[some.start * rows : some.stop * rows]
        starts = torch.arange(len(lengths[some]) + 1, dtype=torch.int32, device=make.device) * rows
        sums = torch.empty(mine.shape[:2], device=make.device)
        parts = (mine, kv, starts, lengths[some], tables[some])
        found = paged_attention(*parts, scale=0.1, longest=rows, scales=batch.scales_there, log_sums=sums)
        mass = torch.empty(len(lengths[some]), make.kv_heads, int(batch.host[3].max()), device=make.device)
        attention_mass(mine, sums, *parts[1:], mass, scale=0.1, scales=batch.scales_there)
        return found.unflatten(0, (-1, rows)), mass

    return Repeated(count, run)


def merged(make):
    outputs = make.normal(19, make.rows, make.heads, make.dim, dtype=torch.float32)
    sums = make.normal(19, make.rows, make.heads, dtype=torch.float32)
    sums[7:, 1] = float("-inf")
    return Repeated(make.rows, lambda rows: merge_states(outputs[:, rows], sums[:, rows]))


def shared(make):
    case = test_cascade.Shared(
        [(1, 0), (3, 96), (2, 560)], heads=(make.heads, make.kv_heads), dim=make.dim, dtype=make.dtype
    )
    case.device, case.q, case.kv = make.device, case.q.to(make.device), case.kv.to(make.device)
    return Repeated(len(case.q), lambda rows: (case.cascade()[rows],), alone=False)


def matrix_of(make, kind):
    form, bits, group = FORMATS[kind]
    outputs, columns = (1030, 4096) if make.large else (20, 384)
    groups = columns // group if group else 1
    extra = torch.randint(0, 16, (outputs, groups), generator=make.rng)
    low, high, stored = (-128, 128, torch.int8) if bits == 8 else (0, 16, torch.uint8)
    return pack(
        torch.randint(low, high, (outputs, columns), generator=make.rng).to(stored),
        torch.rand(outputs, groups, generator=make.rng) * 0.02,
        {"zeros": extra, "minima": extra * 0.01}.get(form),
        form=form,
        bits=bits,
        group=group,
    ).to(make.device)


def multiplied(make, kind):
    """As many rows as the kernel is for, in tiles of 64; each alone is in one of 16. What parts leave is shared by all launches."""
    count = KERNEL_ROWS if make.large else 65
    matrix, x = matrix_of(make, kind), make.normal(count, 4096 if make.large else 384, dtype=torch.float16)
    shared = PartialSums.on(make.device, KERNEL_ROWS)
    return Repeated(count, lambda rows: (quantized_linear(x[rows], matrix, partial_sums=shared),))


def unpacked(make):
    matrices = [matrix_of(make, kind) for kind in FORMATS]
    return Repeated(1, lambda _: tuple(unpack(matrix, torch.float16) for matrix in matrices), alone=False)


def summed(make):
    """Over a group of one rank, turn after turn."""
    x, device = make.normal(make.rows, make.hidden // 4), make.device
    parts = torch.empty(part_bytes(), dtype=torch.uint8, device=device)
    flags = torch.zeros(pieces(), dtype=torch.int32, device=device)
    addresses = [torch.tensor([each.data_ptr()], device=device) for each in (parts, flags)]
    memory = PeerMemory(0, 1, *addresses, torch.zeros_like(flags), (parts, flags))
    return Repeated(make.rows, lambda rows: (rank_sum(x[rows].contiguous(), memory),))


def rounded(make):
    x = make.normal(make.rows, make.hidden)
    return Repeated(make.rows, lambda rows: tuple(part.view(torch.uint8) for part in quantize_rows(x[rows])))


def sampled(make):
    kinds = [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"top_k": 50}, {"min_p": 0.05}, {"presence": 0.5}, {"top_k": 3}]
    rows = make.rows if make.large else len(kinds)
    settings = [RowSettings(**kinds[row % len(kinds)], seed=row, slot=row) for row in range(rows)]
    logits = 3 * make.normal(rows, make.vocab)
    counts = make.whole(0, 3, rows, make.vocab, dtype=torch.int32)
    tokens = make.whole(0, make.vocab, rows)

    def run(some):
        drawn = sample(logits[some], BatchSettings.of(settings[some], make.device), counts)
        return drawn, *token_logprobs(logits[some], tokens[some], 5)

    return Repeated(rows, run)


def masked(make):
    logits, tokens = make.normal(make.rows, make.vocab), make.whole(0, make.vocab, make.rows, 7)
    masks = make.whole(-(2**31), 2**31, make.rows, -(-make.vocab // 32)).int()
    every = torch.arange(make.rows, device=make.device)

    def run(rows):
        changed, counts = (
            logits[rows].clone(),
            torch.zeros(make.rows, make.vocab, dtype=torch.int32, device=make.device),
        )
        apply_bitmask(changed, every[: len(changed)], masks[rows])
        slots = every[rows].repeat_interleave(7)
        count_tokens(counts, slots, tokens[rows].flatten(), output=True)
        return changed, counts[rows]

    return Repeated(make.rows, run)


def copied(make):
    source = make.whole(0, 256, make.rows, (1 << 20) if make.large else 100, dtype=torch.uint8)
    moves = torch.stack((torch.arange(make.rows).flip(0), torch.arange(make.rows))).to(make.device)

    def run(some):
        target = torch.zeros_like(source)
        copy_blocks(source, target, moves[:, some].contiguous())
        return (target[some],)

    return Repeated(make.rows, run)


KERNELS = {
    "norms": norms,
    "gates and embedding": small,
    "write": written,
    "write in 8 bits": lambda make: written(make, fp8=True),
    "decode": decoded,
    "decode of 8 bits": lambda make: decoded(make, fp8=True),
    "chunks and mass": chunked,
    "chunks of 8 bits": lambda make: chunked(make, fp8=True),
    "merge": merged,
    "shared prefixes": shared,
    **{f"product {kind}": lambda make, kind=kind: multiplied(make, kind) for kind in FORMATS},
    "unpacking": unpacked,
    "rows in 8 bits": rounded,
    "sums over ranks": summed,
    "sampling": sampled,
    "masks and counts": masked,
    "block copies": copied,
}


def same(found, wanted):
    """Bit by bit: a NaN equals itself."""
    return torch.equal(found.contiguous().flatten().view(torch.uint8), wanted.contiguous().flatten().view(torch.uint8))


def cases():
    """Interpreted, some take seconds."""
    quick = {
        "norms",
        "gates and embedding",
        "write",
        "merge",
        "rows in 8 bits",
        "sums over ranks",
        "masks and counts",
        "block copies",
    }
    on_gpu = [(name, large) for name in KERNELS for large in (True, False)]
    marked = []
    for case in both([(name, False) for name in KERNELS], on_gpu):
        slow = case.values[0] == "cpu" and case.values[1] not in quick
        marks = [*case.marks, *([pytest.mark.long] if slow else [])]
        marked.append(pytest.param(*case.values, marks=marks, id=case.id))
    return marked


@pytest.mark.parametrize(("device", "name", "large"), cases())
def test_the_same_bits_each_time_and_alone(device, name, large):
    """The small shapes on a GPU, too: what they compile, the sanitizer's run finds in Triton's cache."""
    kernel = KERNELS[name](Maker(device, large))
    first = kernel.run(slice(0, kernel.count))
    for time in range(1, TIMES[device]):
        again = kernel.run(slice(0, kernel.count))
        assert all(map(same, again, first)), f"other bits the {time + 1}th time"
    for row in (0, kernel.count // 2, kernel.count - 1) if kernel.alone else ():
        alone = kernel.run(slice(row, row + 1))
        for found, wanted in zip(alone, first, strict=True):
            assert same(found[0], wanted[row]), f"other bits alone, row {row}"
