"""Guesses on the real CPU workers: the same tokens, log-probabilities and ends in fewer steps, in company and under preemption."""

import pytest

from configs.model.source import resolve_model
from configs.settings import Settings
from engine.cpu.decoder import Decoder
from engine.cpu.formats import choose_arithmetic
from engine.cpu.kv_pool import KvPool, PackedKvPool
from engine.cpu.model import ExactModel, FastModel
from engine.cpu.packed_weights import assemble_packed
from engine.cpu.weights import load_weights
from engine.cpu.worker import CpuWorker
from engine.drafting.lookup import PromptLookup
from engine.loading import load
from engine.models.registry import read_config
from engine.sampling.registry import standard_edits
from engine.sampling.sampler import CpuSampler
from kernels.cpu.build import build as build_kernels
from kernels.cpu.build import compiler
from kernels.cpu.variants import supported
from tests.engine.cpu.test_seam_replay import ASKED
from tests.scheduler.sim import Engine

PROMPTS = [
    [5, 17, 40, 17, 5, 99, 120, 5, 17, 40],
    [7, 8, 9, 7, 8, 9, 7, 8],
    [30, 31, 32, 33],
    [5, 17, 40, 17, 5, 99, 7],
]
MORE = {"narrow": {"top_k": 2}, "banned": {"bad_words": ((40, 17),), "logit_bias": {5: 2.0}}}
CASES = {**ASKED, **{name: ASKED["drawn"] | more for name, more in MORE.items()}}
TOKENS, BLOCK = 40, 16


class Unmeasured(PromptLookup):
    """Guesses without regard to what steps take here."""

    def observe(self, rows, tokens, seconds):
        pass


class Told(Engine):
    """Keeps log-probabilities by request."""

    def absorb(self, outputs):
        for output in outputs:
            entries = [(entry.token_id, entry.logprob) for entry in output.logprobs]
            self.entries.setdefault(output.request_id, []).extend(entries)
        super().absorb(outputs)


@pytest.fixture(scope="module", params=["exact", "fast"])
def serve(request, tiny_model):
    source = resolve_model(str(tiny_model("llama")[1]))
    config = read_config(source)
    fast = request.param == "fast"
    if fast and (not supported() or compiler() is None):
        pytest.skip("no C++ compiler, or another processor")
    if fast:
        build_kernels(supported()[:1])
        arithmetic, weights = choose_arithmetic(Settings(), config), load(source, config, "auto", assemble_packed)
    else:
        decoder = Decoder(config, load_weights(source, config, "auto"))

    def model(blocks):
        if not fast:
            return ExactModel(decoder, KvPool(config, blocks, BLOCK))
        pool = PackedKvPool(config, blocks, BLOCK)
        return FastModel(config, weights, pool, arithmetic=arithmetic, context=blocks * BLOCK, threads=2)

    def run(asked, drafter=None, blocks=64, predictions=None):
        edits = standard_edits(config.vocab_size, config.eos_token_ids)
        worker = CpuWorker(model(blocks), CpuSampler(config.vocab_size, edits))
        eos = frozenset(config.eos_token_ids)
        engine = Told(blocks=blocks, block_size=BLOCK, worker=worker, eos=eos, drafter=drafter)
        engine.entries, engine.exact = {}, fast
        for i, prompt in enumerate(PROMPTS):
            more = {"prediction_ids": tuple(predictions[f"r{i}"])} if predictions else {}
            engine.add(f"r{i}", prompt, max_tokens=TOKENS, **asked | more | {"logprobs": 2})
            for _ in range(3):
                engine.tick()
        engine.drain()
        return engine

    return run


def with_mistakes(outputs):
    """What came out, with every seventh token another."""
    return {name: [token if i % 7 else token ^ 1 for i, token in enumerate(ids, 1)] for name, ids in outputs.items()}


@pytest.mark.parametrize("asked", CASES.values(), ids=CASES)
@pytest.mark.parametrize("blocks", [64, 7], ids=["room", "preempted"])
def test_answers_are_the_same(serve, asked, blocks):
    plain = serve(asked, blocks=blocks)
    drafted = serve(asked, Unmeasured(at_once=True), blocks, with_mistakes(plain.outputs))
    assert drafted.outputs == plain.outputs
    assert {k: v.finish_reason for k, v in drafted.ends.items()} == {k: v.finish_reason for k, v in plain.ends.items()}
    for name, entries in plain.entries.items():
        assert [token for token, _ in drafted.entries[name]] == [token for token, _ in entries]
        values = [value for _, value in entries]
        if plain.exact:  # a row has the same bits however a text is cut into steps
            assert [value for _, value in drafted.entries[name]] == values
        else:
            assert [value for _, value in drafted.entries[name]] == pytest.approx(values, abs=1e-4)
    stats = drafted.scheduler.stats
    assert stats.drafts_accepted > 10 and stats.drafts_proposed > stats.drafts_accepted, "some right, some wrong"
    assert drafted.steps < plain.steps
    assert bool(plain.scheduler.stats.preemptions) == (blocks == 7)


def test_steps_are_fewer_where_a_text_repeats_itself(serve):
    greedy = {"temperature": 0.0, "ignore_eos": True, "logit_bias": {7: 100.0}}
    plain, drafter = serve(greedy), Unmeasured(at_once=True)
    drafted = serve(greedy, drafter)
    assert drafted.outputs == plain.outputs and drafted.steps < plain.steps / 2
    stats = drafted.scheduler.stats
    assert stats.drafts_proposed >= stats.drafts_accepted > 80
    ends = [output.times for output in drafted.ends.values()]
    assert sum(times.drafts_accepted for times in ends) == stats.drafts_accepted
    assert sum(times.drafts_rejected for times in ends) == stats.drafts_proposed - stats.drafts_accepted
    assert drafter._guessed == {}, "nothing is kept of requests that have ended"


def test_logits_of_guesses_are_held_for_so_many_rows_only(serve, monkeypatch):
    """However many guesses there are, memory is planned for `SCORED_ROWS` rows, or one for each sequence."""
    greedy = {"temperature": 0.0, "ignore_eos": True, "logit_bias": {7: 100.0}}
    plain = serve(greedy)
    monkeypatch.setattr("engine.cpu.worker.SCORED_ROWS", 6)
    scored = []
    for model in (ExactModel, FastModel):
        whole = model.logits
        monkeypatch.setattr(
            model, "logits", lambda self, rows, whole=whole: scored.append(len(rows)) or whole(self, rows)
        )
    drafted = serve(greedy, Unmeasured(at_once=True))
    assert drafted.outputs == plain.outputs and drafted.steps < plain.steps
    assert max(scored) == 6 and drafted.scheduler.stats.drafts_accepted > 80
