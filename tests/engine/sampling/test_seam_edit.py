"""An edit beside the project's own: defined here, passed to the samplers of both devices, which do the same with it."""

import numpy as np
import pytest

from configs.model.source import resolve_model
from engine.models.registry import read_config
from engine.sampling.edits import NOTHING, AddingEdit, masked
from engine.sampling.registry import standard_edits
from tests.engine.gpu.test_worker import InAdvance, Logged, prompt
from tests.engine.gpu.tiny_gpu import cpu_worker, gpu_worker, one_layer

BLOCKS = 30
ASKED = ({}, {}, {"logprobs": 2}, {"presence_penalty": 1.0, "logit_bias": {8: 3.0}})


class OddStaysOdd(AddingEdit):
    """No even token after an odd one, whatever the request says."""

    needs_host_tokens = True

    def __init__(self, vocab_size):
        self.even = np.arange(0, vocab_size, 2)
        self.asked = []

    def concerns(self, sampling):
        return sampling.seed % 2 == 1

    def additions(self, sequence, length):
        assert len(sequence.tokens) == length, "it was asked before its tokens were here"
        self.asked.append((sequence.request_id, length))
        return masked(self.even) if sequence.tokens[-1] % 2 else NOTHING


class Inverted:
    """The least likely token is the likeliest. It does not add, and no kernel makes it, so it says nothing of a device."""

    in_kernel = False

    def concerns(self, sampling):
        return sampling.seed % 2 == 1

    def apply(self, logits, rows, sequences):
        logits[rows] = -logits[rows]

    def forget(self, request_id):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return one_layer(tmp_path_factory.mktemp("one-layer"))


def generate(kind, worker_of, folder, toy, requests=4, tokens=6):
    """Some of `ASKED`: requests that the edit concerns (odd seeds) and some that it does not, staggered."""
    config = read_config(resolve_model(str(folder)))
    edits = [*standard_edits(config.vocab_size, config.eos_token_ids), toy] if toy else None
    engine = kind(*worker_of(folder, BLOCKS, edits=edits), BLOCKS)
    for seed, asked in enumerate(ASKED[:requests]):
        engine.add(f"r{seed}", [*prompt(3, seed), 7], max_tokens=tokens, ignore_eos=True, seed=seed, **asked)
        engine.tick()
    engine.drain()
    return engine.outputs


def test_both_devices_do_the_same_with_it_and_steps_in_flight_change_nothing(folder):
    vocab = read_config(resolve_model(str(folder))).vocab_size
    toys = [OddStaysOdd(vocab) for _ in range(3)]
    on_cpu = generate(Logged, cpu_worker, folder, toys[0])
    plain = generate(Logged, cpu_worker, folder, None)
    assert {name for name, tokens in on_cpu.items() if tokens != plain[name]} == {"r1", "r3"}
    for name in ("r1", "r3"):
        assert all(token % 2 for token in on_cpu[name])
    assert generate(Logged, gpu_worker, folder, toys[1]) == on_cpu
    assert generate(InAdvance, gpu_worker, folder, toys[2]) == on_cpu
    for toy in toys:
        assert {name for name, _ in toy.asked} == {"r1", "r3"}


def test_an_edit_that_only_the_host_can_make_is_made_on_both_devices(folder):
    on_cpu, plain, on_gpu = (
        generate(kind, worker_of, folder, toy, requests=2, tokens=2)
        for kind, worker_of, toy in (
            (Logged, cpu_worker, Inverted()),
            (Logged, cpu_worker, None),
            (InAdvance, gpu_worker, Inverted()),
        )
    )
    assert {name for name, tokens in on_cpu.items() if tokens != plain[name]} == {"r1"}
    assert on_gpu == on_cpu
