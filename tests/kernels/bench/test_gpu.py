"""The GPU benchmark's cases run, interpreted and tiny: what it would measure is there and correctly counted."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kernels.bench import gpu
from kernels.bench.gpu_attention import BLOCK, AttentionBench, Shape
from kernels.bench.lines import Result, Skipped
from kernels.bench.timing import Timer, copies, copy_bandwidth
from kernels.gpu.attention import decode as decoding
from kernels.gpu.attention import paged as chunks

TIMER = Timer(torch.device("cpu"), rounds=1)
SHAPE = Shape(heads=4, kv_heads=2, dim=64, dtype=torch.float32)


@pytest.fixture(autouse=True)
def small_cache(monkeypatch):
    monkeypatch.setattr("kernels.bench.timing.CACHE_BYTES", 2**10)


def good(lines):
    """Results by name; nothing else may be among them."""
    found = {line.name: line for line in lines}
    assert len(found) == len(lines)
    assert all(line.seconds > 0 and line.reached > 0 and line.of > 0 for line in lines)
    return found


def test_decode_with_other_pipelines_too(monkeypatch):
    used = watched(monkeypatch, decoding)
    lines = good(list(AttentionBench(TIMER, SHAPE, 1e9).decode(2, 70, stages=(3, 5), shapes=[(2, 32)])))
    name = "decode attention, 2 x 70"
    assert list(lines) == [name, f"{name}, 3 stages", f"{name}, 5 stages", f"{name}, 2 warps, 32 keys"]
    for line in lines.values():
        assert round(line.reached * line.seconds * 1e9) == 2 * 70 * 2 * 2 * 64 * 4  # bytes of keys and values
    chosen = decoding.config_for(2, 64, 4, 90).stages
    assert list(dict.fromkeys(used)) == list(dict.fromkeys([chosen, 3, 5]))


def watched(monkeypatch, module):
    """Stages of each launch of the module's kernel from now on."""
    used = []
    name = "_paged_attention" if module is chunks else "_decode_attention"
    kernel = getattr(module, name)

    class Watched:
        def __getitem__(self, grid):
            def launch(*arguments, **constants):
                used.append(constants["num_stages"])
                kernel[grid](*arguments, **constants)

            return launch

    monkeypatch.setattr(module, name, Watched())
    return used


@pytest.mark.parametrize("cached", [0, 33])
def test_prefill_beside_each_of_torchs_kernels(monkeypatch, cached):
    """On a CPU torch has a fused kernel of its own and none from cuDNN, which says so and is left out."""
    used = watched(monkeypatch, chunks)
    lines = list(AttentionBench(TIMER, SHAPE, 1e9).prefill(2, 20, cached, stages=(3, 5)))
    name = f"prefill attention, 2 x 20 on {cached}"
    skipped = [line for line in lines if isinstance(line, Skipped)]
    assert [line.name for line in skipped] == [f"{name}, of torch's cuDNN"] and skipped[0].skipped
    lines = good([line for line in lines if isinstance(line, Result)])
    names = ["of torch's FlashAttention-2", "of torch (FlashAttention-2)", "3 stages", "5 stages"]
    names += [f"boxes of 16 keys, {stages} stages" for stages in (2, 3, 5)]
    assert list(lines) == [f"{name}, {each}" for each in names]
    pairs = 2 * sum(cached + row + 1 for row in range(20))
    for line in lines.values():
        assert round(line.reached * line.seconds * 1e12) == 4 * pairs * 4 * 64
    assert {3, 5} < set(used)


@pytest.mark.parametrize(
    ("shape", "capability", "why"),
    [(SHAPE, 80, "from compute capability 9.0"), (replace(SHAPE, dim=256), 90, "heads of 256")],
)
def test_why_there_are_no_boxes(monkeypatch, shape, capability, why):
    monkeypatch.setattr("kernels.bench.gpu_attention.capability", lambda _: capability)
    lines = list(AttentionBench(TIMER, shape, 1e9).prefill(1, 3))
    assert [why in line.skipped for line in lines if isinstance(line, Skipped) and "boxes" in line.name] == [True]
    assert not any("boxes" in line.name for line in lines if isinstance(line, Result))


def test_the_faster_of_torchs_kernels_counts(monkeypatch):
    taken = {"FlashAttention-2": 2.0, "cuDNN": 1.0}
    monkeypatch.setattr(AttentionBench, "_fused", lambda _, backend, *__: taken[backend])
    lines = good(list(AttentionBench(TIMER, SHAPE, 1e9).prefill(1, 9)))
    name = "prefill attention, 1 x 9 on 0, of torch"
    assert lines[f"{name} (cuDNN)"].of == lines[f"{name}'s cuDNN"].of == 2 * lines[f"{name}'s FlashAttention-2"].of


class Wrapper:
    """FlashInfer's interface, as far as it is used: checks that plan and tensors fit together."""

    def __init__(self, workspace, layout, use_tensor_cores=None):
        assert workspace.dtype == torch.uint8 and not workspace.any() and layout == "HND"

    def plan(self, *arguments, q_data_type, causal=None, kv_data_type=None):
        *self.rows, starts, indices, last, heads, kv_heads, dim, page = arguments
        assert len(self.rows) == (causal is True) and q_data_type == torch.float32
        assert starts.diff().tolist() == [2, 2] and sorted(indices.tolist()) == [0, 1, 2, 3]
        assert last.tolist() == [53 - BLOCK] * 2 and page == BLOCK
        self.shapes = (heads, dim), (2, kv_heads, page, dim)

    def run(self, queries, pages):
        heads, page = self.shapes
        assert queries.shape[1:] == heads and pages.shape == (4, *page) and pages.is_contiguous()
        assert len(queries) == (self.rows[0][-1] if self.rows else 2)


def test_flashinfer_where_it_is_installed(monkeypatch):
    module = SimpleNamespace(BatchPrefillWithPagedKVCacheWrapper=Wrapper, BatchDecodeWithPagedKVCacheWrapper=Wrapper)
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    bench = AttentionBench(TIMER, SHAPE, 1e9)
    assert list(bench.decode(2, 53))[-1].name == "decode attention, 2 x 53, of FlashInfer"
    assert list(bench.prefill(2, 20, cached=33))[-1].name == "prefill attention, 2 x 20 on 33, of FlashInfer"


def test_every_other_case_gives_its_lines():
    bandwidth = copy_bandwidth(TIMER, 2**12)
    lines = [
        *gpu.swap(TIMER, blocks=3, block_bytes=64),
        *gpu.products(TIMER, bandwidth, columns=128, outputs=130, dtype=torch.float32),
        *gpu.sampling(TIMER, bandwidth, rows=2, vocab=100),
    ]
    assert len(good(lines)) == 2 + 2 * (4 + 3 * 2 + 1) + 4


@pytest.mark.usefixtures("row_scaled_products")
def test_products_of_8_bit_floats():
    lines = list(gpu.fp8_products(TIMER, 1e9, columns=64, outputs=32, many=17, dtype=torch.bfloat16))
    assert len(good(lines)) == 3


def test_products_read_nothing_twice_from_a_cache(monkeypatch):
    """Words, scales and zeros: each turn has its own."""
    seen = []
    monkeypatch.setattr(gpu, "quantized_linear", lambda x, matrix, **_: seen.append(matrix))
    monkeypatch.setattr("kernels.bench.timing.CACHE_BYTES", 10**5)
    list(gpu.products(Timer(torch.device("cpu"), rounds=7), 1e9, columns=128, outputs=130, dtype=torch.float32))
    for form in ("symmetric", "zeros"):
        matrices = [matrix for matrix in seen if matrix.form == form]
        size = matrices[0].nbytes
        parts = [part for one in matrices for part in (one.words, one.scales, one.extras) if part is not None]
        apart = {part.data_ptr(): part.nbytes for part in parts}
        assert sum(apart.values()) >= 10**5 and len(apart) % (10**5 // size + 2) == 0


def test_a_case_that_fails_costs_itself_only(tmp_path):
    line = Result("good", 1.0, 2.0, 4.0, "GB/s")

    def fails():
        yield line
        raise ValueError("no such shape")

    wanted = [("bad", fails), ("good", lambda: iter([line]))]
    out = tmp_path / "lines.json"
    assert gpu.report(TIMER, lambda *_: wanted, out, "this one", 2**12) == 1
    found = json.loads(out.read_text())
    assert found["device"] == "this one" and found["copy_gigabytes_per_second"] > 0
    *results, again = found["results"]
    entry = {"name": "good", "seconds": 1.0, "reached": 2.0, "of": 4.0, "unit": "GB/s", "ratio": 0.5}
    assert results == [entry, {"name": "bad", "error": "ValueError: no such shape"}, entry]
    assert again["of"] == found["copy_gigabytes_per_second"] and again["reached"] > 0
    assert gpu.report(TIMER, lambda *_: wanted[1:], None, "this one", 2**12) == 0


def test_every_case_has_a_name():
    names = [name for name, _ in gpu.cases(TIMER, 1e9)]
    assert len(set(names)) == len(names)


def test_inputs_are_rotated_past_the_cache():
    assert copies(100) * 100 > 2**10
    assert copies(2**10) == 1
