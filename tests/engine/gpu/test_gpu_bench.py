"""The step benchmark on a tiny model, interpreted: its floors are the bytes a step reads."""

from dataclasses import replace

import torch

from engine.gpu_bench import LLAMA_3_8B, StepBench
from kernels.bench.timing import Timer

TINY = replace(
    LLAMA_3_8B,
    vocab_size=64,
    hidden_size=64,
    intermediate_size=96,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    sliding_layers=(False,) * 2,
    max_position=128,
)


def test_steps_are_timed_against_the_bytes_they_read():
    bench = StepBench(TINY, Timer(torch.device("cpu"), rounds=1), torch.float32, 256, bandwidth=1.0)
    decode, prefill = bench.decode(2, 64), bench.prefill(40)
    layer = 64 * (4 + 2 * 2) * 16 + 64 * 64 + 3 * 64 * 96
    weights = 4 * (2 * layer + 64 * 64)
    assert decode.floor == weights + 2 * 64 * 2 * 2 * 2 * 16 * 4
    assert prefill.floor == weights + 40 * 2 * 2 * 2 * 16 * 4
    assert decode.seconds > 0 and prefill.seconds > 0
