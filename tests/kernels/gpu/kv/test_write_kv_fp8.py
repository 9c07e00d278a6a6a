"""8-bit floats and the scales of blocks as they fill: codes, growth, and that how a block was filled leaves no trace."""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.gpu.e4m3 import (
    LEAST_SCALE,
    decoded,
    encoded,
    finite_size,
    inverse_of,
    reference_encoded,
    reference_scale,
    reference_shortened,
    scale_of,
    shortened,
)
from kernels.gpu.kv.write_kv import reference_write_kv, write_kv
from tests.drawn import drawn


@triton.jit
def _convert(x, codes, back, scale, inverse, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    values = shortened(tl.load(x + at))
    tl.store(codes + at, encoded(values))
    tl.store(back + at, decoded(encoded(values)))
    found = scale_of(tl.max(finite_size(values), 0))
    tl.store(scale, found)
    tl.store(inverse, inverse_of(found))


def converted(x):
    """(codes as float8, what they decode to, the scale of all, its inverse)."""
    codes, back = torch.zeros(len(x), dtype=torch.uint8), torch.zeros(len(x))
    scale, inverse = torch.zeros(1), torch.zeros(1)
    _convert[(1,)](x, codes, back, scale, inverse, COUNT=len(x))
    return codes.view(torch.float8_e4m3fn), back, scale[0], inverse[0]


def test_every_code_is_its_own_value():
    codes = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn)
    found, back, *_ = converted(codes.float())
    same = ~codes.float().isnan()
    assert torch.equal(found.view(torch.uint8)[same], codes.view(torch.uint8)[same])
    assert torch.equal(back[same], codes.float()[same]) and back[~same].isnan().all()


def test_rounding_is_to_nearest_even_and_the_smallest_are_cut_off():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4096, generator=generator) * torch.exp2(torch.randint(-14, 7, (4096,), generator=generator).float())
    x[:8] = torch.tensor([1.0625, 1.1875, 2.0**-6, 2.0**-6 * 0.99, 2.0**-9 * 1.9, -(2.0**-10), 0.0, -0.0])
    codes, back, *_ = converted(x)
    assert torch.equal(codes.view(torch.uint8), reference_encoded(reference_shortened(x)).view(torch.uint8))
    normal = x.abs() >= 2.0**-6
    assert torch.equal(back[normal], x[normal].to(torch.float8_e4m3fn).float())
    assert ((x - back).abs() <= torch.maximum(x.abs() * 2.0**-4, torch.tensor(2.0**-9))).all()


def test_what_is_not_finite_is_nan_and_too_large_is_the_largest():
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), 1e30, -1e30, 460.0, 440.0, 1.0])
    x = torch.cat((x, torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32), torch.ones(6)))
    back = converted(x)[1]
    assert back[[0, 1, 2, 8, 9]].isnan().all()
    assert back[3:8].tolist() == [448.0, -448.0, 448.0, 448.0, 1.0]


@pytest.mark.parametrize("top", [0.0, 1e-30, 1e-3, 0.99, 1.0, 1.9999, 255.9, 3e4, 1e30])
def test_a_scale_is_a_power_of_two_that_leaves_room(top):
    scale, inverse = converted(torch.tensor([top, -top / 3, float("inf"), float("nan")]))[2:]
    assert scale == reference_scale(reference_shortened(torch.tensor([[top, -top / 3]]))) and scale * inverse == 1
    assert torch.frexp(scale).mantissa == 0.5
    if scale > LEAST_SCALE:
        assert 128 <= float(reference_shortened(torch.tensor(top)) / scale) < 256


@dataclass(frozen=True)
class Filled:
    """A sequence's projections and the blocks it goes to, in any order."""

    qkv: Tensor
    table: list[int]
    block_size: int
    heads: int
    kv_heads: int
    dim: int
    norms: bool = False

    def write(self, function, spans, blocks=8):
        """Codes, scales and queries after writing the spans (start, stop) of the sequence one call each."""
        generator = torch.Generator().manual_seed(9)
        angles = torch.randn(len(self.qkv), self.dim // 2, generator=generator) * 9
        norm = torch.randn(self.dim, generator=generator) if self.norms else None
        codes = torch.full((blocks, 3, 2, self.kv_heads, self.block_size, self.dim), 0x7F, dtype=torch.uint8)
        kv = codes.view(torch.float8_e4m3fn)[:, 1]
        scales = torch.full((blocks, 3, 2, self.kv_heads), float("nan"))
        queries = []
        for start, stop in spans:
            positions = torch.arange(start, stop)
            slots = [
                self.table[i // self.block_size] * self.block_size + i % self.block_size for i in positions.tolist()
            ]
            queries.append(
                function(
                    self.qkv[start:stop],
                    kv,
                    positions,
                    torch.tensor(slots, dtype=torch.int64),
                    angles.cos(),
                    angles.sin(),
                    heads=self.heads,
                    kv_heads=self.kv_heads,
                    q_norm=norm,
                    k_norm=norm,
                    scales=scales[:, 1],
                )
            )
        assert (codes[:, ::2] == 0x7F).all() and scales[:, ::2].isnan().all()  # other layers
        return kv, scales[:, 1], torch.cat(queries)


def filled(seed, rows, heads=2, kv_heads=2, dim=16, block_size=16, dtype=torch.float32, norms=False):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp2(torch.randint(-9, 6, (rows, 1), generator=generator).float())  # so that scales must grow
    qkv = (torch.randn(rows, (heads + 2 * kv_heads) * dim, generator=generator) * sizes).to(dtype)
    table = torch.randperm(8, generator=generator)[: -(-rows // block_size)].tolist()
    return Filled(qkv, table, block_size, heads, kv_heads, dim, norms)


def same_blocks(found, expected):
    assert torch.equal(found[0].view(torch.uint8), expected[0].view(torch.uint8))
    assert torch.equal(found[1].nan_to_num(-1), expected[1].nan_to_num(-1))


def cut(rows, *ends):
    ends = sorted({0, rows, *(end for end in ends if end < rows)})
    return list(pairwise(ends))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dtype"),
    [
        (2, 2, 16, torch.float32),
        (5, 1, 40, torch.float32),
        (4, 1, 80, torch.bfloat16),
        (3, 3, 64, torch.float16),
    ],
)
@pytest.mark.parametrize(
    ("block_size", "spans"),
    [
        (16, cut(1)),
        (16, cut(33, 7, 8, 16)),
        (16, cut(34)),
        (32, cut(33)),
        (32, cut(34, 1, 31, 32)),
        (24, cut(30, 5)),  # not a power of two
    ],
)
def test_codes_scales_and_queries(block_size, spans, heads, kv_heads, dim, dtype):
    sequence = filled(dim, spans[-1][1], heads, kv_heads, dim, block_size, dtype)
    found, expected = sequence.write(write_kv, spans), sequence.write(reference_write_kv, spans)
    same_blocks(found, expected)
    torch.testing.assert_close(found[2], expected[2], atol=1e-3, rtol=2**-7)


@pytest.mark.parametrize("spans", [cut(20), cut(20, 3, 4, 18)])
def test_normed_keys(spans):
    """The norm's last bit may fall on the other side of a rounding, so values are compared rather than codes."""
    sequence = filled(3, 20, norms=True)
    (kv, scales, _), (codes, its, _) = sequence.write(write_kv, spans), sequence.write(reference_write_kv, spans)
    torch.testing.assert_close(scales, its, equal_nan=True)
    one, other = kv.float() * scales[..., None, None], codes.float() * its[..., None, None]
    torch.testing.assert_close(one, other, atol=1e-3, rtol=2**-3, equal_nan=True)
    assert int((one != other).sum() - one.isnan().sum()) <= 4


@settings(max_examples=drawn(5))
@given(st.lists(st.integers(1, 19), max_size=6), st.integers(0, 2**31))
def test_how_a_block_was_filled_leaves_no_trace(ends, seed):
    """Chunks of any lengths, cut anywhere: the same bytes as all at once."""
    sequence = filled(seed, 20, heads=1, kv_heads=1, dim=8, block_size=8)
    same_blocks(sequence.write(write_kv, cut(20, *ends)), sequence.write(write_kv, cut(20)))


def test_token_by_token_is_the_same_as_all_at_once():
    sequence = filled(4, 20, heads=1, kv_heads=2)
    same_blocks(sequence.write(write_kv, cut(20, *range(20))), sequence.write(write_kv, cut(20)))


def test_a_small_first_token_does_not_clip_the_others():
    """An attention sink's value is far smaller than what follows it in the block; what follows keeps its precision."""
    sequence = filled(5, 16, heads=1, kv_heads=1)
    qkv = torch.randn(16, 48, generator=torch.Generator().manual_seed(6))
    qkv[0] *= 1e-4
    kv, scales, _ = replace(sequence, qkv=qkv).write(write_kv, cut(16, *range(16)))
    block = sequence.table[0]
    values = kv[block, 1, 0].float() * scales[block, 1, 0]
    bound = torch.maximum(qkv[:, 32:].abs() * 2.0**-4, 2.0**-9 * scales[block, 1, 0])
    assert ((values - qkv[:, 32:]).abs() <= bound).all()


def test_a_block_begun_anew_forgets_its_scale():
    """Reused after a sequence with huge values; no token of it is left, so neither is its scale."""
    sequence = filled(7, 16, heads=1, kv_heads=1)
    huge = torch.cat((sequence.qkv * 1e6, sequence.qkv))
    twice = replace(sequence, qkv=huge, table=[sequence.table[0]] * 2)
    after = twice.write(write_kv, cut(32, 16))[1][sequence.table[0], 1]
    assert torch.equal(after, sequence.write(write_kv, cut(16))[1][sequence.table[0], 1])


def test_rows_of_several_sequences_with_padding_between():
    """Decode rows and a chunk in one launch, slots of -1 anywhere: each block as if alone."""
    generator = torch.Generator().manual_seed(8)
    slots = [-1, 5 * 16 + 3, -1, 2 * 16 + 15, -1, 0 * 16, 0 * 16 + 1, 0 * 16 + 2, 1 * 16, -1]
    qkv = torch.randn(len(slots), 48, generator=generator)
    arguments = [torch.arange(len(slots)), torch.tensor(slots), torch.ones(10, 8), torch.zeros(10, 8)]
    pools = []
    for function in (write_kv, reference_write_kv):
        kv = torch.ones(6, 2, 1, 16, 16).to(torch.float8_e4m3fn)
        scales = torch.full((6, 2, 1), 2.0**-20)
        function(qkv, kv, *arguments, heads=1, kv_heads=1, scales=scales)
        pools.append((kv, scales))
    same_blocks(*pools)
    assert (pools[0][0][[3, 4]].float() == 1).all() and (pools[0][1][[3, 4]] == 2.0**-20).all()


@pytest.mark.parametrize(
    ("dtype", "scales"),
    [
        (torch.float32, torch.zeros(2, 2, 1)),
        (torch.float8_e4m3fn, None),
        (torch.float8_e4m3fn, torch.zeros(2, 2, 2)),
        (torch.float8_e4m3fn, torch.zeros(2, 2, 1, dtype=torch.float16)),
    ],
)
def test_scales_that_do_not_fit_the_pool_are_refused(dtype, scales):
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="scales"):
        write_kv(
            torch.zeros(1, 24),
            torch.zeros(2, 2, 1, 16, 8).to(dtype),
            one,
            one,
            torch.zeros(1, 4),
            torch.zeros(1, 4),
            heads=1,
            kv_heads=1,
            scales=scales,
        )
