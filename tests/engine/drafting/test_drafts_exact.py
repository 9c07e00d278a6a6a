"""Guesses from a request's own tokens on the real CPU workers: the same tokens, log-probabilities and ends, in fewer steps."""

import pytest

from configs.model.source import resolve_model
from engine.cpu.decoder import Decoder
from engine.cpu.kv_pool import KvPool
from engine.cpu.model import ExactModel
from engine.cpu.weights import load_weights
from engine.cpu.worker import CpuWorker
from engine.drafting.lookup import PromptLookup
from engine.models.registry import read_config
from engine.sampling.registry import standard_edits
from engine.sampling.sampler import CpuSampler
from tests.engine.cpu.test_seam_replay import ASKED, Logged

PROMPTS = [
    [5, 17, 40, 17, 5, 99, 120, 5, 17, 40],
    [7, 8, 9, 7, 8, 9, 7, 8],
    [30, 31, 32, 33],
    [5, 17, 40, 17, 5, 99, 7],
]
COMMON = {"cold": {}, "narrow": {"top_k": 2}, "banned": {"bad_words": ((40, 17),), "logit_bias": {5: 2.0}}}


@pytest.fixture(scope="module")
def serve(tiny_model):
    source = resolve_model(str(tiny_model("llama")[1]))
    config = read_config(source)
    decoder = Decoder(config, load_weights(source, config, "auto"))

    def run(asked, drafter, blocks=64, every=3):
        edits = standard_edits(config.vocab_size, config.eos_token_ids)
        worker = CpuWorker(ExactModel(decoder, KvPool(config, blocks, 8)), CpuSampler(config.vocab_size, edits))
        engine = Logged(
            blocks=blocks, block_size=8, worker=worker, eos=frozenset(config.eos_token_ids), drafter=drafter
        )
        for i, prompt in enumerate(PROMPTS):
            engine.add(f"r{i}", prompt, max_tokens=40, **asked)
            for _ in range(every):
                engine.tick()
        engine.drain()
        return engine

    return run


@pytest.mark.parametrize("asked", {**ASKED, **{k: ASKED["drawn"] | v for k, v in COMMON.items()}}.values())
@pytest.mark.parametrize("blocks", [64, 12], ids=["room", "preempted"])
def test_answers_are_the_same(serve, asked, blocks):
    plain = serve(asked, None, blocks)
    drafted = serve(asked, PromptLookup(at_once=True), blocks)
    assert drafted.outputs == plain.outputs
    assert {k: v.finish_reason for k, v in drafted.ends.items()} == {k: v.finish_reason for k, v in plain.ends.items()}
    assert sorted(token for token, _ in drafted.entries) == sorted(token for token, _ in plain.entries)
    if blocks == 12:
        assert plain.scheduler.stats.preemptions


def test_steps_are_fewer_where_a_text_repeats_itself(serve):
    greedy = {"temperature": 0.0, "ignore_eos": True, "logit_bias": {7: 100.0}}
    plain, drafter = serve(greedy, None), PromptLookup(at_once=True)
    drafted = serve(greedy, drafter)
    assert drafted.outputs == plain.outputs and drafted.steps < plain.steps / 2
    stats = drafted.scheduler.stats
    assert stats.drafts_proposed >= stats.drafts_accepted > 80
    ends = [output.times for output in drafted.ends.values()]
    assert sum(times.drafts_accepted for times in ends) == stats.drafts_accepted
    assert sum(times.drafts_rejected for times in ends) == stats.drafts_proposed - stats.drafts_accepted
    assert drafter._guessed == {}, "nothing is kept of requests that have ended"
