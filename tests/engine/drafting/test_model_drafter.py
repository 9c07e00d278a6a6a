"""A draft model on the real CPU workers: the answers are those without it, and the model itself as its draft is always right."""

import pytest

from configs.model.source import resolve_model
from configs.settings import Settings
from engine.cpu.draft_model import CpuDraftModel
from engine.cpu.formats import Arithmetic, choose_arithmetic
from engine.cpu.loading import PoolSize, load_model
from engine.cpu.worker import CpuWorker
from engine.drafting.draft_worth import DraftWorth
from engine.drafting.model_drafter import CATCH_UP_ROWS, ModelDrafter
from engine.models.registry import read_config
from engine.sampling.registry import standard_edits
from engine.sampling.sampler import CpuSampler
from kernels.cpu.build import build as build_kernels
from kernels.cpu.build import compiler
from kernels.cpu.variants import supported
from tests.engine.drafting.test_drafts_exact import BLOCK, CASES, PROMPTS, TOKENS, Told

LONG = [(7 * place) % 250 + 3 for place in range(90)]  # more than the draft catches up in one call


class Always(DraftWorth):
    """Guesses four at a time, whatever it costs."""

    def rests(self, known):
        return False

    def row_price(self, rows, more=1):
        return 0.0

    def next_chance(self, own):
        return 1.0

    def estimated(self, own, sure):
        return 1.0

    def pays(self, chances, rows, drafted):
        return True

    def promising(self, chances, streams):
        return True

    def worth_catching_up(self, missing, made):
        return True

    def value(self, own):
        return 1.0


def in_place(work):
    return work()


@pytest.fixture(scope="module", params=["exact", "fast"])
def arithmetic(request):
    if request.param == "exact":
        return Arithmetic("exact", "for the test")
    if not supported() or compiler() is None:
        pytest.skip("no C++ compiler, or another processor")
    build_kernels(supported()[:1])
    return choose_arithmetic(Settings(), read_config(resolve_model(None)))


class Pair:
    """A model and a draft, served by the scheduler's own loop."""

    def __init__(self, arithmetic, model, draft):
        self.arithmetic = arithmetic
        self.source, self.draft_source = (resolve_model(str(each)) for each in (model, draft))
        self.config, self.draft_config = read_config(self.source), read_config(self.draft_source)

    def loaded(self, source, config, size):
        return load_model(source, config, self.arithmetic, "auto", size)

    def drafter(self, blocks=64, worth=None, context=None):
        size, config = PoolSize(blocks, BLOCK, context or blocks * BLOCK), self.draft_config
        edits = standard_edits(config.vocab_size, config.eos_token_ids)
        model = self.loaded(self.draft_source, config, size)
        draft = CpuDraftModel("tiny", model, CpuSampler(config.vocab_size, edits), size, config.vocab_size)
        return ModelDrafter(draft, in_place, worth or Always(), at_once=True)

    def run(self, asked, drafter=None, blocks=64, prompts=PROMPTS, staggered=3):
        config = self.config
        model = self.loaded(self.source, config, PoolSize(blocks, BLOCK, blocks * BLOCK))
        edits = standard_edits(config.vocab_size, config.eos_token_ids)
        worker = CpuWorker(model, CpuSampler(config.vocab_size, edits))
        engine = Told(
            blocks=blocks, block_size=BLOCK, worker=worker, eos=frozenset(config.eos_token_ids), drafter=drafter
        )
        engine.entries = {}
        for i, prompt in enumerate(prompts):
            engine.add(f"r{i}", prompt, max_tokens=TOKENS, **asked)
            for _ in range(staggered):
                engine.tick()
        engine.drain()
        return engine


@pytest.fixture(scope="module")
def pair(arithmetic, tiny_model):
    """Two models that agree now and then."""
    return Pair(arithmetic, tiny_model("llama")[1], tiny_model("llama-tied")[1])


@pytest.fixture(scope="module")
def itself(arithmetic, tiny_model):
    folder = tiny_model("llama")[1]
    return Pair(arithmetic, folder, folder)


@pytest.mark.parametrize("asked", CASES.values(), ids=CASES)
@pytest.mark.parametrize("blocks", [64, 7], ids=["room", "preempted"])
def test_answers_are_those_without(pair, asked, blocks):
    plain = pair.run(asked, blocks=blocks)
    drafter = pair.drafter(blocks)
    drafted = pair.run(asked, drafter, blocks)
    assert drafted.outputs == plain.outputs
    assert {k: v.finish_reason for k, v in drafted.ends.items()} == {k: v.finish_reason for k, v in plain.ends.items()}
    assert drafted.scheduler.stats.drafts_proposed > 50
    assert bool(plain.scheduler.stats.preemptions) == (blocks == 7)


@pytest.mark.parametrize("asked", CASES.values(), ids=CASES)
@pytest.mark.parametrize("blocks", [64, 7], ids=["room", "preempted"])
def test_a_model_that_drafts_for_itself_is_always_right(itself, asked, blocks):
    """Greedy and drawn: its positions, its KV and its draws are those of the model."""
    plain = itself.run(asked, blocks=blocks)
    drafted = itself.run(asked, itself.drafter(blocks), blocks)
    assert drafted.outputs == plain.outputs
    stats = drafted.scheduler.stats
    ended_early = sum(len(ids) < TOKENS for ids in drafted.outputs.values())
    # What was guessed behind the end of an answer counts as wrong.
    assert stats.drafts_proposed - stats.drafts_accepted <= 16 * ended_early
    assert stats.drafts_accepted > 2 * (drafted.steps - 20)


def test_twenty_in_company(pair):
    asked = CASES["drawn"]
    prompts = [[3 + i, *LONG[: 4 * i]] for i in range(20)]
    alone = [pair.run(asked, prompts=[prompt]).outputs["r0"] for prompt in prompts[::7]]
    drafted = pair.run(asked, pair.drafter(128), blocks=128, prompts=prompts, staggered=1)
    assert [drafted.outputs[f"r{i}"] for i in range(0, 20, 7)] == alone


def test_a_long_prompt_is_caught_up_with_in_parts(itself):
    drafter, rows = itself.drafter(), []
    compute = drafter._model.compute
    drafter._model.compute = lambda inputs, sequences: (
        rows.append(sum(len(each.token_ids) for each in inputs)) or compute(inputs, sequences)
    )
    drafted = itself.run(CASES["greedy"], drafter, prompts=[LONG, LONG[::-1]], staggered=0)
    assert drafted.scheduler.stats.drafts_accepted > 40
    assert max(rows) <= max(CATCH_UP_ROWS, 2 * 18) and rows[:3] == [CATCH_UP_ROWS] * 3


def test_kv_of_others_is_dropped_and_computed_again_where_blocks_are_short(itself):
    """Four sequences, and blocks for fewer: none fails, and guesses stay right."""
    drafter = itself.drafter(blocks=9)
    drafted = itself.run(CASES["greedy"], drafter)
    plain = itself.run(CASES["greedy"])
    assert drafted.outputs == plain.outputs
    assert drafted.scheduler.stats.drafts_accepted == drafted.scheduler.stats.drafts_proposed > 20
    assert len(drafter._sequences._free) == 9 and drafter._own == {}, "nothing is kept of requests that have ended"


def test_a_sequence_beyond_the_draft_s_context_goes_on_without(itself):
    drafted = itself.run(CASES["greedy"], itself.drafter(context=24), prompts=PROMPTS[:1])
    plain = itself.run(CASES["greedy"], prompts=PROMPTS[:1])
    assert drafted.outputs == plain.outputs
    assert 0 < drafted.scheduler.stats.drafts_proposed < 24


def test_tokens_that_the_draft_does_not_know_are_not_given_to_it(itself):
    drafter = itself.drafter()
    drafter._model.vocab_size = 90
    drafted = itself.run(CASES["greedy"], drafter, prompts=[[5, 99, 6]])
    assert drafted.scheduler.stats.drafts_proposed == 0


def test_a_request_without_guesses_is_not_asked_for(pair):
    drafted = pair.run(CASES["greedy"] | {"speculation": False}, pair.drafter())
    assert drafted.scheduler.stats.drafts_proposed == 0


def test_a_measured_draft_stops_where_it_never_pays(pair):
    """A clock on which the draft takes much longer than the model's steps."""

    class Slow(DraftWorth):
        def drafted(self, rows, seconds, *, new):
            super().drafted(rows, 0.2, new=new)

        def observe(self, rows, tokens, seconds):
            super().observe(rows, tokens, 0.01 + 0.001 * rows)

    drafter = pair.drafter(worth=Slow())
    drafted = pair.run(CASES["drawn"], drafter, prompts=PROMPTS * 6)
    assert drafted.scheduler.stats.drafts_proposed < 40, "a second is spent to find out, at most"
