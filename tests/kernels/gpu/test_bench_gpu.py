"""The GPU benchmark's cases run, interpreted and tiny: what it would measure is there and counted right."""

import torch

from kernels.bench import gpu
from kernels.bench.timing import Timer, copies, copy_bandwidth

TIMER = Timer(torch.device("cpu"), rounds=1)
SHAPE = gpu.Shape(heads=4, kv_heads=2, dim=64, dtype=torch.float32)


def test_every_case_gives_a_line(monkeypatch):
    monkeypatch.setattr("kernels.bench.timing.CACHE_BYTES", 2**10)
    bandwidth = copy_bandwidth(TIMER, 2**12)
    attention = gpu.AttentionBench(TIMER, SHAPE, bandwidth)
    lines = [
        attention.decode(2, 70),
        *attention.prefill(2, 20),
        *attention.prefill(1, 9, cached=33),
        *gpu.swap(TIMER, blocks=3, block_bytes=64),
        *gpu.products(TIMER, bandwidth, columns=64, outputs=130, dtype=torch.float32),
        *gpu.fp8_products(TIMER, bandwidth, columns=64, outputs=32, many=17, dtype=torch.bfloat16),
        *gpu.sampling(TIMER, bandwidth, rows=2, vocab=100),
    ]
    assert len(lines) == 1 + 1 + 1 + 2 + 4 + 3 + 4
    assert len({line.name for line in lines}) == len(lines)
    assert all(line.seconds > 0 and line.reached > 0 and line.of > 0 for line in lines)
    decode = lines[0]
    assert round(decode.reached * decode.seconds * 1e9) == 2 * 70 * 2 * 2 * 64 * 4  # bytes of keys and values
    causal = lines[1]
    assert round(causal.reached * causal.seconds * 1e12) == 4 * 2 * (20 * 21 // 2) * 4 * 64


def test_inputs_are_rotated_past_the_cache():
    assert copies(2**20) * 2**20 > 256 * 2**20
    assert copies(2**30) == 1
