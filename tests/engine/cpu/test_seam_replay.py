"""Replay and drafts on the real CPU worker: cut anywhere, resumed elsewhere, guessed ahead, a request has the same tokens."""

import pytest

from configs.model.source import resolve_model
from engine.cpu.decoder import Decoder
from engine.cpu.kv_pool import KvPool
from engine.cpu.model import ExactModel
from engine.cpu.weights import load_weights
from engine.cpu.worker import CpuWorker
from engine.models.registry import read_config
from engine.sampling.registry import standard_edits
from engine.sampling.sampler import CpuSampler
from tests.scheduler.sim import Engine

BLOCKS, BLOCK = 16, 8
PROMPT = [5, 17, 5, 40, 17, 5, 99, 120, 5, 17]
ASKED = {
    "greedy": {"temperature": 0.0, "ignore_eos": True},
    "drawn": {"temperature": 1.3, "seed": 7, "top_p": 0.95, "ignore_eos": True},
    "penalized": {
        "temperature": 1.0,
        "seed": 11,
        "repetition_penalty": 1.4,
        "presence_penalty": 0.7,
        "frequency_penalty": 0.6,
        "min_tokens": 6,
        "logprobs": 2,
    },
}


class Logged(Engine):
    """Keeps log-probabilities, too."""

    def __init__(self, **config):
        super().__init__(**config)
        self.entries = []

    def absorb(self, outputs):
        for output in outputs:
            self.entries += [(entry.token_id, entry.logprob) for entry in output.logprobs]
        super().absorb(outputs)


class Oracle:
    """Proposes what an earlier run produced, with a mistake in every third place."""

    name = "oracle"
    reads_predictions = False

    def __init__(self, tokens):
        self.tokens = tokens

    def concerns(self, sampling):
        return True

    def waits(self, request_id, sampling, known):
        return True

    def propose(self, candidates):
        (only,) = candidates
        done = len(only.token_ids) - len(PROMPT)
        guesses = enumerate(self.tokens[done : done + 4], done)
        return [[token if place % 3 else (token + 1) % 320 for place, token in guesses]]

    def forget(self, request_id):
        pass

    def verified(self, request_id, proposed, accepted):
        pass

    def observe(self, rows, tokens, seconds):
        pass


@pytest.fixture
def run(tiny_model):
    source = resolve_model(str(tiny_model("llama")[1]))
    config = read_config(source)
    decoder = Decoder(config, load_weights(source, config, "auto"))

    def serve(asked, generated=(), drafter=None):
        edits = standard_edits(config.vocab_size, config.eos_token_ids)
        worker = CpuWorker(ExactModel(decoder, KvPool(config, BLOCKS, BLOCK)), CpuSampler(config.vocab_size, edits))
        engine = Logged(
            blocks=BLOCKS, block_size=BLOCK, worker=worker, eos=frozenset(config.eos_token_ids), drafter=drafter
        )
        engine.add("r", PROMPT, max_tokens=12, generated=generated, **asked)
        engine.drain()
        return engine

    return serve


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_a_request_cut_anywhere_is_resumed_on_another_engine(run, asked):
    whole = run(asked)
    tokens = whole.outputs["r"]
    for cut in range(1, len(tokens)):
        resumed = run(asked, tokens[:cut])
        assert tokens[:cut] + resumed.outputs["r"] == tokens, cut
        assert resumed.ends["r"].finish_reason is whole.ends["r"].finish_reason
        for (token, logprob), (same, again) in zip(whole.entries[cut:], resumed.entries, strict=False):
            assert token == same and logprob == pytest.approx(again, abs=1e-4)
        assert len(resumed.entries) == max(0, len(whole.entries) - cut)


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_guesses_are_verified_in_fewer_steps(run, asked):
    plain = run(asked)
    drafted = run(asked, drafter=Oracle(plain.outputs["r"]))
    assert drafted.outputs == plain.outputs
    assert drafted.steps < plain.steps
    assert [token for token, _ in drafted.entries] == [token for token, _ in plain.entries]
