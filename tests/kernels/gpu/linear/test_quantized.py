"""Products with 4- and 8-bit weights: packers against the formats' own definitions, the kernel against dequantized weights."""

import functools
import os
import subprocess
import sys

import numpy
import pytest
import torch
from gguf import quants
from gguf.constants import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st

from kernels.gpu.linear import quantized as module
from kernels.gpu.linear import split_sums
from kernels.gpu.linear.quantized import (
    KERNEL_ROWS,
    quantized_linear,
    reference_quantized_linear,
    runs_in_kernel,
    tiling,
    unpack,
)
from kernels.gpu.linear.quantized_matrix import dequantize, from_gguf, pack
from kernels.gpu.linear.split_sums import FOLD, PartialSums, most_bytes, most_counts, splits_for
from kernels.gpu.workspace import Workspace

FORMATS = [
    ("symmetric", 4, 32),
    ("symmetric", 4, 128),
    ("minima", 4, 32),
    ("zeros", 4, 32),
    ("zeros", 4, 64),
    ("zeros", 4, 128),
    ("symmetric", 8, 32),
    ("symmetric", 8, 64),
    ("channel", 8, 0),
]
FORMAT = pytest.mark.parametrize(("form", "bits", "group"), FORMATS)
# Relative to the largest result. The interpreter truncates to bf16 where a GPU rounds.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 2**-7}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def plain(form, bits, group, outputs, columns, seed=0):
    """Random integers, scales and extras, and the weights they stand for."""
    rng = generator(seed)
    low, high = (0, 16) if bits == 4 else (-128, 128)
    q = torch.randint(low, high, (outputs, columns), generator=rng, dtype=torch.int16)
    groups = columns // group if group else 1
    scales = (torch.rand(outputs, groups, generator=rng) * 0.02 + 0.001).half()
    extras = None
    if form == "zeros":
        extras = torch.randint(0, 16, (outputs, groups), generator=rng)
    if form == "minima":
        extras = (torch.randn(outputs, groups, generator=rng) * 0.1).half()
    wide = [None if part is None else part.float().repeat_interleave(columns // groups, 1) for part in (scales, extras)]
    shift = 8 if form == "symmetric" and bits == 4 else wide[1] if form == "zeros" else 0
    weights = (q - shift) * wide[0] + (wide[1] if form == "minima" else 0)
    return q.to(torch.uint8 if bits == 4 else torch.int8), scales, extras, weights


def packed(form, bits, group, outputs, columns, seed=0):
    q, scales, extras, _ = plain(form, bits, group, outputs, columns, seed)
    return pack(q, scales, extras, form=form, bits=bits, group=group)


def drawn(rows, columns, dtype=torch.float32, seed=1):
    """Activations that are a view of wider rows, with NaN beside them."""
    wide = torch.full((rows, columns + 8), float("nan"), dtype=dtype)
    wide[:, :columns] = torch.randn(rows, columns, generator=generator(seed))
    return wide[:, :columns]


def close(actual, expected):
    atol = TOLERANCE[actual.dtype] * expected.float().abs().max().item()
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@FORMAT
@pytest.mark.parametrize("outputs", [1, 130])
@pytest.mark.parametrize("columns", [128, 640])
def test_packed_weights_stand_for_the_plain_ones(form, bits, group, outputs, columns):
    q, scales, extras, weights = plain(form, bits, group, outputs, columns)
    matrix = pack(q, scales, extras, form=form, bits=bits, group=group)
    torch.testing.assert_close(dequantize(matrix), weights, atol=1e-6, rtol=0)
    torch.testing.assert_close(unpack(matrix, torch.float32), weights, atol=1e-6, rtol=0)
    assert matrix.words.nbytes * 8 >= outputs * columns * bits


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_gguf_groups_are_what_gguf_says_they_are(kind):
    weights = torch.randn(70, 96, generator=generator(3)).numpy()
    stored = quants.quantize(weights, GGMLQuantizationType[kind])
    expected = quants.dequantize(stored, GGMLQuantizationType[kind]).reshape(70, 96)
    assert numpy.array_equal(dequantize(from_gguf(torch.from_numpy(stored), kind)).numpy(), expected)


@FORMAT
@pytest.mark.parametrize(("rows", "outputs", "columns"), [(1, 128, 128), (3, 129, 384), (17, 64, 1152), (33, 300, 256)])
def test_product(form, bits, group, rows, outputs, columns):
    matrix = packed(form, bits, group, outputs, columns, seed=rows)
    x = drawn(rows, columns)
    close(quantized_linear(x, matrix), reference_quantized_linear(x, matrix))


@FORMAT
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_product_of_16_bit_activations_with_bias(form, bits, group, dtype):
    """2,304 columns are 8 spans or more of every format: the sum is split, and the bias added once."""
    matrix = packed(form, bits, group, 140, 2304)
    x, bias = drawn(5, 2304, dtype), torch.randn(140, generator=generator(5)).to(dtype)
    close(quantized_linear(x, matrix, bias), reference_quantized_linear(x, matrix, bias))


@pytest.mark.parametrize("columns", [1, 63, 100, 129])
def test_int8_rows_of_any_length(columns):
    q = torch.randint(-127, 128, (9, columns), generator=generator(6), dtype=torch.int8)
    matrix = pack(q, torch.rand(9, 1, generator=generator(6)) / 100, None, form="channel", bits=8, group=0)
    x = drawn(2, columns)
    close(quantized_linear(x, matrix), reference_quantized_linear(x, matrix))


def test_bias_without_a_split():
    matrix, x, bias = packed("symmetric", 4, 32, 20, 64), drawn(2, 64), torch.arange(20.0)
    assert splits_for(1, matrix.words.shape[1], matrix.lanes, 132) == 1
    close(quantized_linear(x, matrix, bias), reference_quantized_linear(x, matrix, bias))


ROWS = (1, 16, 17, 32, 33, 64, 65, KERNEL_ROWS)  # on either side of each shape of program


@pytest.fixture
def short_splits(monkeypatch):
    """Of one span or more."""
    monkeypatch.setattr(split_sums, "_LEAST_SPANS", 1)


@pytest.mark.parametrize(
    ("form", "bits", "group", "rows"),
    [
        ("symmetric", 4, 32, 65),
        ("zeros", 4, 128, 17),
        *(pytest.param(*each, KERNEL_ROWS + 6, marks=pytest.mark.long) for each in FORMATS),
    ],
)
def test_a_row_does_not_depend_on_the_others(form, bits, group, rows, short_splits):
    """Not in any shape of program, nor beyond the kernel's rows if that is asked for. There are more splits than a fold has."""
    columns = 5 * (32 if group == 32 else 64) * 16 // bits
    matrix = packed(form, bits, group, 3, columns)
    assert splits_for(1, matrix.words.shape[1], matrix.lanes, 132) == 5 > FOLD
    x = drawn(rows, columns, torch.float16)
    whole = quantized_linear(x, matrix, batch_invariant=True)
    close(whole, reference_quantized_linear(x, matrix))
    for some in (slice(0, 1), *(slice(0, count) for count in ROWS if count < rows), slice(rows - 3, rows)):
        assert torch.equal(quantized_linear(x[some], matrix), whole[some])


def in_order(parts):
    """fp32 sums, `FOLD` at a time, then these."""
    folds = [parts[first : first + FOLD] for first in range(0, len(parts), FOLD)]
    sums = [functools.reduce(numpy.add, fold, numpy.float32(0)) for fold in folds]
    return functools.reduce(numpy.add, sums, numpy.float32(0))


@pytest.mark.parametrize("splits", [9, 5, 2])
@pytest.mark.parametrize("rows", [1, 40, 70])
def test_splits_are_added_in_their_order(rows, splits, short_splits):
    """Sums that tell: each split has one weight other than zero, and small ones get lost beside large ones."""
    parts = [2.0**24, 1, 1, 1, 1, 1, 1, 1, -(2.0**24)][:splits]
    q = torch.full((1, splits * 128), 8, dtype=torch.uint8)
    q[0, ::128] = 9
    matrix = pack(q, torch.ones(1, splits * 4), None, form="symmetric", bits=4, group=32)
    assert splits_for(1, splits, 32, 132) == splits
    x = torch.zeros(rows, splits * 128)
    x[:, ::128] = torch.tensor(parts)
    expected = in_order([numpy.float32(part) for part in parts])
    assert quantized_linear(x, matrix).flatten().tolist() == [expected] * rows
    if splits == 9:
        assert expected not in (numpy.float32(sum(parts)), functools.reduce(numpy.add, map(numpy.float32, parts)))


def test_products_share_memory_of_which_they_know_nothing(short_splits):
    """One after the other, of several shapes; the counts are zero before and after each."""
    shared = PartialSums.on(torch.device("cpu"), KERNEL_ROWS)
    shared.memory.memory.fill_(0xFF)  # NaN
    for rows, outputs, columns in ((1, 140, 640), (65, 3, 640), (20, 3, 384), (3, 140, 256)):
        matrix, x, bias = (
            packed("symmetric", 4, 32, outputs, columns),
            drawn(rows, columns),
            torch.arange(float(outputs)),
        )
        found = quantized_linear(x, matrix, bias, partial_sums=shared)
        assert torch.equal(found, quantized_linear(x, matrix, bias))
        close(found, reference_quantized_linear(x, matrix, bias))
        assert not shared.arrived.any()


@given(
    st.integers(1, 1500), st.integers(1, 500), st.sampled_from([32, 64]), st.sampled_from([1, 108, 132, 148]),
    st.sampled_from(ROWS),
)  # fmt: skip
def test_shared_memory_holds_every_product(tiles, spans, lanes, processors, rows):
    row_tiles, tiles, parts = tiling(128 * tiles, spans * lanes * 4, rows, 4, lanes % 64, processors).grid
    if parts > 1:
        assert 4 * parts * rows * tiles * 128 <= most_bytes(KERNEL_ROWS, processors)
        assert tiles * row_tiles <= most_counts(KERNEL_ROWS, processors)


def test_more_than_there_is_memory_for_is_refused():
    small = PartialSums(Workspace(8, torch.device("cpu")), torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match="workspace that has 8"):
        small.take(2, 1, 1, 1)
    with pytest.raises(ValueError, match="6 tiles; there are counts for 2"):
        small.take(2, 1, 3, 2)


def test_many_rows_go_through_dequantized_tiles(monkeypatch):
    monkeypatch.setattr(module, "_UNPACKED_BYTES", 2 * 128 * 192)  # a tile at a time
    for form, bits, group in FORMATS:
        columns = 192 if group != 128 else 256
        matrix = packed(form, bits, group, 300, columns)
        x, bias = drawn(KERNEL_ROWS + 1, columns), torch.randn(300, generator=generator(8))
        assert not runs_in_kernel(len(x))
        close(quantized_linear(x, matrix, bias), reference_quantized_linear(x, matrix, bias))


def test_no_rows():
    assert quantized_linear(torch.empty(0, 64), packed("symmetric", 4, 32, 20, 64)).shape == (0, 20)


@pytest.mark.parametrize("lanes", [32, 64])
@pytest.mark.parametrize("processors", [1, 20, 108, 132])
@pytest.mark.parametrize("tiles", [1, 5, 32, 112, 224, 1000])
def test_every_split_has_spans_and_all_run_at_once(tiles, processors, lanes):
    """And as many as there is room for, given that lengths are equal and each has at least 4 spans."""
    at_once = {32: 4, 64: 3}[lanes] * processors
    for spans in (1, 2, 7, 16, 32, 56, 112):
        splits = splits_for(tiles, spans, lanes, processors)
        each = -(-spans // splits)
        assert 1 <= splits <= spans and (splits - 1) * each < spans <= splits * each
        assert splits == 1 or each >= 4
        assert splits == 1 or tiles * splits <= at_once
        assert tiles * splits * 3 >= min(at_once, tiles * max(1, spans // 4))


def test_splits_of_llamas_inner_width():
    """14,336 outputs by 4,096 columns on an H200: one round of programs, in groups of 32 of equal length."""
    assert splits_for(112, 32, 32, 132) == 4
    assert splits_for(112, 16, 64, 132) == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"group": 16}, "groups of 16"),
        ({"bits": 5}, "5 bits"),
        ({"form": "channel", "group": 0, "extras": None}, "8 bits, not 4"),
        ({"extras": None}, "needs extras"),
        ({"form": "symmetric"}, "takes no extras"),
        ({"bits": 8}, "4 bits, not 8"),
        ({"quants": torch.zeros(2, 100, dtype=torch.uint8)}, "100 columns"),
    ],
)
def test_what_no_kernel_knows_is_refused(change, named):
    arguments = {
        "quants": torch.zeros(2, 128, dtype=torch.uint8),
        "scales": torch.ones(2, 1),
        "extras": torch.ones(2, 1),
    }
    arguments |= {"form": "zeros", "bits": 4, "group": 128} | change
    with pytest.raises(ValueError, match=named):
        pack(arguments.pop("quants"), arguments.pop("scales"), arguments.pop("extras"), **arguments)


@pytest.mark.parametrize("x", [torch.ones(2, 65), torch.ones(64, 2).t(), torch.ones(2, 64, dtype=torch.float64)])
def test_other_activations_are_refused(x):
    with pytest.raises(ValueError, match=r"64|float64"):
        quantized_linear(x, packed("symmetric", 4, 32, 8, 64))


def compiled(code):
    """What a process prints that compiles for an H200."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("name", "programs", "threads"),
    [
        ("w4 awq 128 bf16 16 rows", 3, 128),
        ("unpack awq 128 bf16", 1, 128),
        ("w8 channel bf16 16 rows", 3, 128),
        ("w4 q4_0 bf16 16 rows", 4, 128),
        ("w4 q4_0 bf16 64 rows folded", 1, 256),
    ],
)
def test_builds_for_a_gpu_without_spills(name, programs, threads):
    """And `programs` of them, of so many threads each, run on one multiprocessor of an H200 at once."""
    fits, registers, shared = compiled(
        "from kernels.gpu.build import build\nfrom kernels.gpu.linear.quantized import VARIANTS\n"
        f"built = build('m', next(v for v in VARIANTS if v.name == {name!r}), 90)\n"
        "print(built.fits, built.registers, built.shared)"
    )
    assert fits == "True"
    assert programs * threads * -(-int(registers) // 8) * 8 <= 65536
    assert programs * (int(shared) + 1024) <= 228 * 1024
