"""The step benchmark on a tiny model, interpreted: its floors are the bytes that a step reads."""

from dataclasses import replace

import pytest
import torch

from engine.bench.steps import LLAMA_3_8B, StepBench
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
