"""Replay, drafts and adapters on the GPU's worker, its kernels interpreted: what the CPU's exact path gives, token by token."""

import pytest

from tests.engine.gpu.test_worker import InAdvance, Logged, prompt
from tests.engine.gpu.tiny_gpu import cpu_worker, gpu_worker, one_layer

BLOCKS, LENGTH = 12, 8
PENALTIES = {"presence_penalty": 1.5, "frequency_penalty": 2.0, "repetition_penalty": 1.3}
# Three tokens that take turns as their counts rise; no rounding brings them close to each other or to a fourth.
COUNTED = {"logit_bias": {7: 100.0, 8: 87.0, 9: 74.0}, "frequency_penalty": 30.0}
# Drawn by the device; with counts there; at the least length, which ends it; with tokens that the host must know; by the host.
ASKED = {
    "greedy": {"logprobs": 1},
    "penalties": {"logprobs": 0, **PENALTIES},
    "counted": COUNTED,
    "least": {"min_tokens": 6, "stop_token_ids": (11, 12), "logit_bias": {11: 100.0, 12: 80.0, 13: 60.0}},
    "bad words": {"logit_bias": {7: 100.0, 9: 60.0, 10: 59.0}, "bad_words": ((7,), (9, 10)), **PENALTIES},
    "host": {"logprobs": 200, "presence_penalty": 0.8},
}
DRAWN = {"temperature": 1.0, "seed": 7, "top_p": 0.95, "repetition_penalty": 1.2, "frequency_penalty": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return one_layer(tmp_path_factory.mktemp("one-layer"))


class Oracle:
    """Knows what each request will say, and is wrong at every third place."""

    name = "oracle"
    reads_predictions = False

    def __init__(self, outputs):
        self.outputs = outputs
        self.proposed = 0

    def concerns(self, sampling):
        return True

    def waits(self, request_id, sampling, known):
        return True

    def propose(self, candidates):
        return [self.guess(each) for each in candidates]

    def forget(self, request_id):
        pass

    def verified(self, request_id, proposed, accepted):
        pass

    def observe(self, rows, tokens, seconds):
        pass

    def guess(self, candidate):
        done = len(candidate.token_ids) - LENGTH
        guesses = list(enumerate(self.outputs[candidate.request_id][done : done + min(candidate.most, 3)], done))
        self.proposed += len(guesses)
        return [token if place % 3 else (token + 1) % 320 for place, token in guesses]


def serve(engine, asked, generated=None):
    """All in one batch."""
    for index, (name, sampling) in enumerate(asked.items()):
        said = (generated or {}).get(name, ())
        engine.add(name, prompt(LENGTH, index), max_tokens=7, ignore_eos=True, generated=said, **sampling)
    engine.drain()
    return engine


def same_entries(found, wanted):
    assert found.keys() == wanted.keys()
    for name, entries in found.items():
        assert [entry.token_id for entry in entries] == [entry.token_id for entry in wanted[name]]
        assert [entry.logprob for entry in entries] == pytest.approx([e.logprob for e in wanted[name]], abs=1e-4)


@pytest.fixture(scope="module")
def plain(folder):
    return serve(Logged(*cpu_worker(folder, BLOCKS), BLOCKS), ASKED)


def test_guesses_are_verified_in_fewer_steps(folder, plain):
    """Two steps at once, other requests' among them; graphs run the steps in which nobody has a guess."""
    oracle = Oracle(plain.outputs)
    engine = serve(InAdvance(*gpu_worker(folder, BLOCKS), BLOCKS, drafter=oracle), ASKED)
    assert engine.outputs == plain.outputs
    same_entries(engine.logprobs, plain.logprobs)
    assert oracle.proposed
    assert engine.steps < plain.steps


def test_drawn_tokens_are_the_same_with_guesses_and_when_resumed(folder):
    """Counts of penalties on the device follow accepted guesses, and begin with the output that exists."""
    asked = {"drawn": DRAWN}
    whole = serve(Logged(*gpu_worker(folder, BLOCKS), BLOCKS), asked).outputs
    guessed = serve(InAdvance(*gpu_worker(folder, BLOCKS), BLOCKS, drafter=Oracle(whole)), asked)
    assert guessed.outputs == whole
    for cut in (1, 4):
        resumed = serve(InAdvance(*gpu_worker(folder, BLOCKS), BLOCKS), asked, {"drawn": whole["drawn"][:cut]})
        assert resumed.outputs["drawn"] == whole["drawn"][cut:]


@pytest.mark.parametrize("cut", [4, *(pytest.param(cut, marks=pytest.mark.long) for cut in (1, 6))])
def test_requests_cut_anywhere_are_resumed(folder, plain, cut):
    said = {name: tokens[:cut] for name, tokens in plain.outputs.items()}
    engine = serve(InAdvance(*gpu_worker(folder, BLOCKS), BLOCKS), ASKED, said)
    assert {name: said[name] + tokens for name, tokens in engine.outputs.items()} == plain.outputs
    same_entries(engine.logprobs, {name: entries[cut:] for name, entries in plain.logprobs.items()})
    assert {name: end.finish_reason for name, end in engine.ends.items()} == {
        name: end.finish_reason for name, end in plain.ends.items()
    }


def test_what_the_cases_ask_for_is_what_they_show(plain):
    assert plain.outputs["counted"] == [7, 8, 9, 7, 8, 9, 7]
    assert plain.outputs["least"] == [13] * 6 + [11]
    assert len(set(plain.outputs["penalties"])) == 7
    assert 7 not in plain.outputs["bad words"]
