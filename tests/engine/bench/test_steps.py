"""The step benchmark on a tiny model, interpreted: its floors are the bytes that a step reads."""

from dataclasses import replace

import pytest
import torch

from engine.bench.steps import (
    BLOCK,
    DECODES,
    LEFT_FREE,
    LLAMA_3_8B,
    StepBench,
    StepTime,
    kernel_table,
    pool_tokens,
    steps,
)
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
CPU = torch.device("cpu")


@pytest.mark.long
def test_steps_are_timed_against_the_bytes_they_read():
    bench = StepBench(TINY, Timer(torch.device("cpu"), rounds=1), torch.float32, 256, bandwidth=1.0, sequences=3)
    decode, prefill = bench.decode(2, 64), bench.prefill(20)
    layer = 64 * (4 + 2 * 2) * 16 + 64 * 64 + 3 * 64 * 96
    weights = 4 * (2 * layer + 64 * 64)
    assert decode.floor == weights + 2 * 64 * 2 * 2 * 2 * 16 * 4
    assert prefill.floor == weights + 20 * 2 * 2 * 2 * 16 * 4
    assert decode.seconds > 0 and prefill.seconds > 0
    assert (decode.graph, prefill.graph) == (2, None)
    assert decode.eager > 0 and prefill.eager is None
    assert decode.host > 0 and decode.kernels and prefill.host is None
    straggler = bench.decode(3, 32, 100)
    assert straggler.floor == weights + (100 + 2 * 32) * 2 * 2 * 2 * 16 * 4
    assert straggler.name == "decode 3 at 32, one at 100"


def test_the_graphs_step_is_the_one_without(monkeypatch):
    """Over keys and values that are not zeros: what is timed gives the same logits either way."""
    found = []
    bench = StepBench(TINY, Timer(torch.device("cpu"), rounds=1), torch.float32, 256, bandwidth=1.0, sequences=3)
    logits = bench._model.logits
    monkeypatch.setattr(bench._model, "logits", lambda hidden: found.append(logits(hidden)))
    bench.decode(3, 40)
    assert bench._graphs.replayed > 0
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], atol=1e-5, rtol=1e-5)
    assert found[0].std() > 0
    assert bench._pool.storage.std() > 0.9


class AskedSteps:
    """As far as `steps` asks."""

    def __init__(self, tokens):
        self.tokens, self.asked = tokens, []

    def decode(self, *step):
        self.asked.append(step)
        return StepTime("", *step[:1], 1, step[1], 1.0, 1.0)

    def prefill(self, rows):
        return StepTime("", 1, rows, rows, 1.0, 1.0)


def test_steps_that_the_pool_does_not_hold_are_named():
    small = AskedSteps(200 * 1024)
    lines = [line for line in steps(small) if isinstance(line, str)]
    assert len(small.asked) + len(lines) == len(DECODES)
    assert lines[0] == "decode 256 at 1024: left out, 262,144 tokens are needed and 204,800 fit"
    large = AskedSteps(10**6)
    assert not any(isinstance(line, str) for line in steps(large)) and large.asked == list(DECODES)


def test_the_pool_is_for_the_largest_step_or_for_what_is_free():
    weights = 2 * (LLAMA_3_8B.layers * (3 * 4096 * 14336 + 2 * 4096 * 4096 + 2 * 4096 * 1024) + 2 * 4096 * 128256)
    token = 2 * 32 * 2 * 8 * 128
    assert pool_tokens(LLAMA_3_8B, 141 * 10**9) == 128 * 4096
    assert pool_tokens(LLAMA_3_8B, weights + LEFT_FREE + 1000 * token) == 1000
    assert pool_tokens(LLAMA_3_8B, 2**30) == BLOCK


@pytest.mark.long  # a profiler's first use takes seconds
def test_the_dearest_kernels_come_first():
    x = torch.ones(600, 600)
    found = kernel_table(lambda: [x @ x for _ in range(3)] + [x[:2, :2] + 1], CPU, most=2)
    assert found[0][0] == "aten::mm" and found[0][1] == 3 and found[0][2] >= found[1][2] and len(found) == 2
