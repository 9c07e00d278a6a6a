"""Beam search in the scheduler: forks over shared blocks, copies on write, the same texts whatever else runs."""

from random import Random

import pytest

from scheduler.types.beams import BeamParams
from scheduler.types.messages import FinishReason
from scheduler.types.sampling_params import SamplingParams
from tests.scheduler.sim import Engine
from tests.scheduler.sim_worker import EOS, VOCAB, searched

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


def texts(engine, name, width):
    return [engine.outputs[f"{name}.{rank}"] for rank in range(width)]


def at_rest(engine):
    """Nothing is left of any search."""
    beams = engine.scheduler._beams
    assert not (beams._groups or beams._running or beams._gathering or engine.scheduler._tails._kept)
    assert engine.scheduler.pool.used == 0
    return True


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:8], PROMPT[:1]], ids=["partly filled", "full blocks", "one token"])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_search_brings_what_it_would_over_lists_and_computes_nothing_twice(prompt, width, depth):
    engine = Engine(blocks=60, depth=depth, max_step_tokens=64, max_running=8)
    engine.search("b", prompt, width, max_tokens=12)
    engine.drain()
    engine.check_outputs()
    assert len({tuple(text) for text in texts(engine, "b", width)}) == width
    assert engine.scheduler.snapshot().recomputed_tokens == 0
    assert engine.scheduler.snapshot().prompt_tokens == len(prompt)
    assert at_rest(engine)


def test_beams_share_full_blocks_and_each_copies_what_is_left_of_one():
    engine = Engine(blocks=60, max_step_tokens=64, max_running=8)
    tables, copies = [], []

    def look(step):
        tables.append([chunk.block_table for chunk in step.chunks])
        copies.append([chunk.copy_from is not None for chunk in step.chunks])
        assert all(chunk.length == 1 for chunk in step.chunks) or step.step_id == 0

    engine.after_step = look
    engine.search("b", PROMPT, 4, max_tokens=9, ignore_eos=True)
    engine.drain()
    engine.check_outputs()
    for position, (step, copied) in enumerate(zip(tables[1:9], copies[1:9], strict=True), len(PROMPT)):
        assert len(step) == 4
        assert len({tuple(table[:2]) for table in step}) == 1  # the prompt's full blocks: once for all
        assert len({table[position // 4] for table in step}) == 4  # what each writes to is its own
        assert copied == [position % 4 > 0] * 4


@pytest.mark.parametrize("early", ["always", "likely", "never"])
@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 2.0])
def test_ends_minimum_and_scores(early, penalty):
    engine = Engine(blocks=80, max_step_tokens=64, max_running=8)
    asked = {"penalty": penalty, "early": early, "max_tokens": 16, "stop_token_ids": (1, 2, 8), "min_tokens": 3}
    engine.search("b", PROMPT, 3, **asked)
    engine.drain()
    engine.check_outputs()
    for rank in range(3):
        end, text = engine.ends[f"b.{rank}"], engine.outputs[f"b.{rank}"]
        stopped = text[-1] in (1, 2, 8, EOS)
        assert end.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
        assert end.stop_token == (text[-1] if stopped else None) and len(text) > 3


def test_log_probabilities_are_those_of_the_text_and_as_many_as_asked_for():
    engine = Engine(blocks=60, max_step_tokens=64)
    engine.search("b", PROMPT, 2, max_tokens=5, logprobs=1, ignore_eos=True, prompt_logprobs=0)
    engine.drain()
    engine.check_outputs()
    for rank in range(2):
        end = engine.ends[f"b.{rank}"]
        assert [entry.token_id for entry in end.logprobs] == engine.outputs[f"b.{rank}"]
        assert all(len(entry.top) == 1 for entry in end.logprobs)
    engine.search("c", PROMPT, 2, max_tokens=5)
    engine.drain()
    assert engine.ends["c.0"].logprobs == []


def test_fewer_answers_than_beams():
    engine = Engine(blocks=60)
    engine.search("b", PROMPT, 4, answers=1, max_tokens=7)
    engine.drain()
    engine.check_outputs()
    assert at_rest(engine)


@pytest.mark.parametrize("limits", [{"max_step_tokens": 1}, {"max_step_tokens": 3}, {"max_running": 1}, {"blocks": 5}])
def test_beams_that_do_not_fit_take_turns(limits):
    engine = Engine(**{"blocks": 60, "max_step_tokens": 64, "max_running": 8, **limits})
    engine.search("b", PROMPT, 4, max_tokens=7)
    engine.add("other", [7, 8, 9], max_tokens=15, ignore_eos=True)
    engine.drain()
    engine.check_outputs()
    assert at_rest(engine)


def test_a_search_keeps_its_place_in_the_queue():
    """Each beam comes in before requests that came after its search."""
    engine = Engine(blocks=60, max_running=2)
    engine.search("b", PROMPT, 2, max_tokens=6, ignore_eos=True)
    for number in range(4):
        engine.add(f"later{number}", [number + 20], max_tokens=30, ignore_eos=True)
    while "b.0" not in engine.ends:
        engine.tick()
    assert len(engine.scheduler._table.waiting) >= 3 and engine.steps < 12


def test_a_search_whose_step_fails_ends_and_others_go_on():
    engine = Engine(blocks=80, max_step_tokens=4, max_running=8)
    engine.search("b", PROMPT, 3, max_tokens=9)
    engine.search("c", PROMPT, 3, max_tokens=9)
    engine.add("other", list(range(10)), max_tokens=9, ignore_eos=True)
    for _ in range(9):
        engine.tick()
    engine.fail_step()
    engine.drain()
    engine.check_outputs()
    assert at_rest(engine)
    failed = {name[0] for name, end in engine.ends.items() if end.finish_reason is FinishReason.ERROR}
    assert failed and all(end.error == "injected" for name, end in engine.ends.items() if name[0] in failed)


def test_a_search_with_a_beam_that_cannot_be_computed_fails_as_a_whole():
    engine = Engine(blocks=60)
    engine.search("b", PROMPT, 3, max_tokens=9)
    engine.tick()
    engine.tick()
    engine.worker.fails = "b.0~5"
    engine.drain()
    assert {end.finish_reason for end in engine.ends.values()} == {FinishReason.ERROR} and len(engine.ends) == 3
    assert at_rest(engine)


def test_all_of_a_search_end_together():
    engine = Engine(blocks=60)
    engine.search("b", PROMPT, 3, max_tokens=9)
    for _ in range(4):
        engine.tick()
    engine.abort("b.1")
    assert {name: end.finish_reason for name, end in engine.ends.items()} == dict.fromkeys(
        ("b.0", "b.1", "b.2"), FinishReason.ABORT
    )
    engine.drain()
    assert at_rest(engine)


def test_before_all_have_come_a_search_is_no_work_and_may_be_left():
    engine = Engine(blocks=60)
    for rank in range(2):
        engine.add(f"b.{rank}", PROMPT, beams=BeamParams(group="b", rank=rank, answers=3, width=3))
    with pytest.raises(ValueError, match="in use"):
        engine.add("b.0", PROMPT)
    assert not engine.scheduler.has_work and engine.scheduler.idle
    engine.abort("b.0")
    engine.absorb(engine.scheduler.abort_all(0.0))
    assert len(engine.ends) == 2 and at_rest(engine)


def test_a_search_that_looks_for_nothing_or_has_begun_is_refused():
    engine = Engine(blocks=20)
    with pytest.raises(ValueError, match="got 0 generated_ids and max_tokens=0"):
        engine.search("d", PROMPT, 2, max_tokens=0)
    with pytest.raises(ValueError, match="got 1 generated_ids and max_tokens=5"):
        engine.search("d", PROMPT, 2, generated=[1])


@pytest.mark.parametrize("seed", range(16))
def test_searches_beside_others_in_a_small_pool(seed):
    """Prefixes in common, aborts, failing steps, priorities, tiers, more than fits: every book is checked after every step."""
    rng = Random(seed)
    engine = Engine(
        blocks=rng.randint(8, 24), depth=1 + seed % 2, max_step_tokens=rng.choice([2, 5, 32]), max_running=rng.randint(2, 7),
        caching=seed % 4 > 0, scheduling=rng.choice(["fcfs", "priority", "fair", "throughput"]), decode_watermark=0.1,
        tiers={"host": 12} if seed % 3 == 0 and seed % 4 else None, seed=seed,
    )  # fmt: skip
    for number in range(14):
        prompt = PROMPT[: rng.randint(1, 10)] + rng.choices(range(VOCAB), k=rng.randint(0, 3))
        common = {"max_tokens": rng.randint(1, 9), "priority": rng.choice([0, 0, 1]), "tenant": rng.choice(["", "a"])}
        if rng.random() < 0.5:
            width = rng.randint(1, 4)
            engine.search(f"b{number}", prompt, width, answers=rng.randint(1, width), **common)
        else:
            engine.add(f"r{number}", prompt, **common)
        for _ in range(rng.randint(0, 6)):
            engine.tick()
        if rng.random() < 0.1:
            engine.abort(f"b{number}.0")
        if rng.random() < 0.05:
            engine.fail_step()
    engine.drain()
    engine.check_outputs()
    assert at_rest(engine)


def test_the_search_over_lists_is_no_greedy_one():
    asked = SamplingParams(max_tokens=8)
    params = [BeamParams(group="", rank=0, answers=1, width=width) for width in (1, 4)]
    alone, among_four = (searched(PROMPT, asked, each) for each in params)
    assert alone[0] != among_four[0]
