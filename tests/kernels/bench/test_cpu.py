"""The benchmark's accounting: bytes, operations and floors. What it measures is time, which no test asserts."""

import pytest

from kernels.bench.cpu import DIM, HEADS, KV_HEADS, LAYERS, Bench, Rates, Row, random_matrix
from kernels.cpu.build import build, compiler
from kernels.cpu.native import NativeChunk, NativeOps
from kernels.cpu.packing import unpack
from kernels.cpu.variants import supported

pytestmark = pytest.mark.skipif(not supported() or compiler() is None, reason="no C++ compiler, or another processor")
RATES = Rates(read=1e9, int8=4e9, fp32=1e9, bf16=2e9)


@pytest.fixture(scope="module")
def bench():
    build(supported()[:1])
    return Bench(NativeOps(supported()[0].library, 2), RATES, rounds=1)


def test_the_floor_is_the_larger_of_reading_and_computing():
    assert Row("reads", 1.0, bytes=2e9, operations=4e9, rate=4e9).floor(RATES) == 2.0
    assert Row("computes", 1.0, bytes=1e9, operations=12e9, rate=4e9).floor(RATES) == 3.0


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "Q4_K"])
def test_random_weights_are_finite(kind):
    assert unpack(random_matrix(32, 256, kind)).isfinite().all()


def test_a_linear_counts_its_records_and_products(bench):
    row = bench.linear("some", [random_matrix(32, 64, "Q4_1"), random_matrix(32, 64, "Q4_1")], 3)
    assert row.bytes == 2 * 2 * 2 * 320  # matrices, tiles of 16 outputs, groups of 32 columns
    assert row.operations == 2 * 3 * 32 * 64 * 2
    assert row.seconds > 0


def test_attention_counts_keys_seen(bench):
    decode = bench.attention([NativeChunk(1, 9, ()), NativeChunk(1, 9, ())])
    assert decode.bytes == 2 * 10 * LAYERS * KV_HEADS * DIM * 4
    assert decode.operations == 4 * 2 * 10 * HEADS * DIM * LAYERS
    prefill = bench.attention([NativeChunk(4, 2, ())])
    assert prefill.operations == 4 * (3 + 4 + 5 + 6) * HEADS * DIM * LAYERS
