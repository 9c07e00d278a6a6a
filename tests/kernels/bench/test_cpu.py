"""The benchmark's accounting: bytes, operations and floors. What it measures is time, which no test asserts."""

import pytest

from kernels.bench import cpu
from kernels.bench.cpu import MODELS, Bench, ModelShape, Rates, Row, measure_rates, memory, random_matrix
from kernels.cpu.build import build, compiler
from kernels.cpu.native import NativeChunk, NativeOps
from kernels.cpu.packing import unpack
from kernels.cpu.variants import supported

pytestmark = pytest.mark.skipif(not supported() or compiler() is None, reason="no C++ compiler, or another processor")
SHAPE = ModelShape(3, 256, 512, 128, 6, 2, 64, "Q4_K", "Q6_K", "Q8_0")
RATES = Rates(read=1e9, int8=4e9, fp32=1e9, bf16=2e9)


@pytest.fixture(scope="module")
def bench():
    build(supported()[:1])
    return Bench(NativeOps(supported()[0].library, 2), RATES, 1, SHAPE)


def test_the_floor_is_the_larger_of_reading_and_computing():
    assert Row("reads", 1.0, bytes=2e9, operations=4e9, rate=4e9).floor(RATES) == 2.0
    assert Row("computes", 1.0, bytes=1e9, operations=12e9, rate=4e9).floor(RATES) == 3.0


def test_the_bandwidth_is_that_of_reading_all_of_a_memory(bench, monkeypatch):
    whole, sizes = memory(1 << 21), []
    assert whole.shape == (1 << 15, 16) and bench.ops.read(whole).tolist() == 16 * [1 << 15]
    monkeypatch.setattr(cpu, "FAR", 1 << 21)
    monkeypatch.setattr(cpu, "memory", lambda size: sizes.append(size) or whole)
    rates = measure_rates(bench.ops, 2, 1, native_bf16=True)
    assert sizes == [1 << 21] and rates.bf16 == 2 * rates.fp32 and min(rates.read, rates.int8, rates.fp32) > 0


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
    assert (
        decode.bytes == 2 * 10 * 3 * 2 * 64 * 4
    )  # sequences, keys, layers, heads, their width, keys and values in bf16
    assert decode.operations == 4 * 2 * 10 * 6 * 64 * 3
    prefill = bench.attention([NativeChunk(4, 2, ())])
    assert prefill.operations == 4 * (3 + 4 + 5 + 6) * 6 * 64 * 3


def test_all_operations_have_a_row_in_the_types_of_the_model(bench):
    rows = {row.name: row for row in bench.rows()}
    assert {"qkv, 1 rows", "gate, up, 128 rows", "head, 32 rows", "attention, prefill 128 at 3968"} <= rows.keys()
    assert "head, 128 rows" not in rows  # of a prompt one row is sampled after
    assert rows["qkv, 8 rows"].bytes == 3 * 40 * 2368  # layers, tiles, a record of Q4_K
    assert rows["down, 8 rows"].bytes == 16 * 2 * (2368 + 3360 + 2368)  # tiles, records, layers: the second is Q6_K
    assert rows["head, 1 rows"].bytes == 8 * 8 * 544
    assert all(row.seconds > 0 for row in rows.values())


def test_the_models_are_as_large_as_their_names_say():
    """Millions of parameters, of head and embedding once."""
    sizes = {
        name: shape.vocab * shape.hidden
        + shape.layers * (shape.hidden * (shape.qkv + shape.heads * shape.dim) + 3 * shape.hidden * shape.inner)
        for name, shape in MODELS.items()
    }
    assert {name: round(size / 1e6) for name, size in sizes.items()} == {"smollm2-135m": 134, "qwen2.5-1.5b": 1544}
