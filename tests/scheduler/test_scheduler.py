"""The policies, one by one, each on the smallest case that shows it."""

import random
from dataclasses import replace

import pytest

from scheduler.policies.base import Need
from scheduler.token_budget import split_prefill
from scheduler.types.messages import FinishReason
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import ChunkResult
from scheduler.validation import RequestTooLong
from tests.scheduler.sim import Engine
from tests.scheduler.sim_worker import EOS, VOCAB, SimWorker, expected


def prompt(length, seed=0):
    return [(seed * 31 + i * 7) % (VOCAB - 10) + 10 for i in range(length)]


def chunks(engine):
    """Record each step that runs as {request: length}."""
    seen = []
    engine.after_step = lambda step: seen.append({c.request_id: c.length for c in step.chunks})
    return seen


def test_decodes_go_first_and_prompts_take_the_rest():
    engine = Engine(blocks=64, max_step_tokens=8)
    engine.add("a", prompt(4), max_tokens=20, ignore_eos=True)
    engine.add("b", prompt(4, 1), max_tokens=20, ignore_eos=True)
    engine.tick()
    seen = chunks(engine)
    engine.tick()
    engine.add("c", prompt(18, 2), max_tokens=2, ignore_eos=True)
    for _ in range(5):
        engine.tick()
    assert all(step["a"] == step["b"] == 1 for step in seen), "running streams never skip a step"
    assert [step["c"] for step in seen if "c" in step][:3] == [6, 6, 6], "the prompt takes what the decodes leave"
    engine.drain()
    engine.check_outputs()


def test_a_short_prompt_passes_a_long_one():
    engine = Engine(blocks=64, max_step_tokens=8)
    engine.add("long", prompt(120), max_tokens=1)
    engine.tick()
    engine.add("short", prompt(6, 1), max_tokens=1)
    for _ in range(5):
        engine.tick()
    assert "short" in engine.ends
    assert "long" not in engine.ends
    engine.drain()
    engine.check_outputs()


def test_a_long_prompt_ends_under_a_stream_of_short_ones():
    engine = Engine(blocks=64, max_step_tokens=8)
    engine.add("long", prompt(100), max_tokens=1)
    for i in range(60):
        engine.add(f"s{i}", prompt(8, i + 1), max_tokens=1)
        engine.tick()
        if "long" in engine.ends:
            break
    assert i <= 100 / 4 + 3, "half of each step goes to the oldest"
    engine.drain()
    engine.check_outputs()


def test_split_gives_priority_then_half_to_the_oldest_then_the_shortest():
    needs = [Need((0,), 1, 100), Need((0,), 2, 30), Need((0,), 3, 5), Need((1,), 0, 1)]
    assert split_prefill(needs, 40) == {1: 20, 2: 15, 3: 5}
    assert split_prefill(needs, 200) == {1: 100, 2: 30, 3: 5, 0: 1}
    assert split_prefill([Need((0,), 1, 10), Need((0,), 2, 10)], 16) == {1: 10, 2: 6}
    assert split_prefill(needs, 1) == {1: 1}
    assert split_prefill([], 8) == {}


def test_a_prefix_is_reused_and_counted():
    engine = Engine(blocks=64, max_step_tokens=64)
    engine.add("cold", prompt(21), max_tokens=3, ignore_eos=True)
    engine.drain()
    engine.add("warm", prompt(21), max_tokens=3, ignore_eos=True)
    engine.add("salted", prompt(21), max_tokens=3, ignore_eos=True, salt="other")
    engine.drain()
    engine.check_outputs()
    cached = {name: engine.ends[name].times.cached_tokens for name in engine.ends}
    assert cached == {"cold": 0, "warm": 20, "salted": 0}
    stats = engine.scheduler.snapshot()
    assert (stats.prefix_query_tokens, stats.prefix_hit_tokens) == (63, 20)


def test_the_last_prompt_token_is_always_computed():
    engine = Engine(blocks=64, max_step_tokens=64)
    for name in ("cold", "warm"):
        engine.add(name, prompt(16), max_tokens=2, ignore_eos=True)
        engine.drain()
    assert engine.ends["warm"].times.cached_tokens == 12, "a whole number of blocks, less the one that must give logits"


def test_outputs_of_a_turn_are_cached_for_the_next():
    engine = Engine(blocks=64, max_step_tokens=64)
    engine.add("turn1", prompt(10), max_tokens=12, ignore_eos=True)
    engine.drain()
    history = prompt(10) + engine.outputs["turn1"]
    engine.add("turn2", history + prompt(3, 5), max_tokens=2)
    engine.drain()
    assert engine.ends["turn2"].times.cached_tokens == 20, "21 of 22 tokens have KV, in 5 full blocks"
    engine.check_outputs()


def test_requests_that_arrive_together_compute_a_shared_prefix_once():
    engine = Engine(blocks=256, max_step_tokens=16)
    shared = prompt(80)
    for i in range(8):
        engine.add(f"r{i}", shared + prompt(4, i + 1), max_tokens=2, ignore_eos=True)
    seen = chunks(engine)
    engine.drain()
    engine.check_outputs()
    computed = sum(sum(step.values()) for step in seen)
    assert computed == 80 + 8 * (4 + 1), "one prefix, eight tails, eight decodes"


def test_a_promise_ends_with_its_maker():
    engine = Engine(blocks=256, max_step_tokens=16)
    engine.add("maker", prompt(80), max_tokens=2)
    engine.tick()
    engine.add("waits", prompt(80) + prompt(4, 1), max_tokens=2)
    engine.tick()
    assert engine.scheduler.snapshot().waiting == 1
    engine.abort("maker")
    engine.drain()
    assert engine.ends["waits"].finish_reason in (FinishReason.LENGTH, FinishReason.STOP)
    assert engine.ends["waits"].times.cached_tokens > 0, "what the maker had computed is reused"
    engine.check_outputs()


def test_preemption_recomputes_exactly_and_is_bounded():
    engine = Engine(blocks=10, max_step_tokens=16, max_preemptions=2, decode_watermark=0.0)
    for i in range(4):
        engine.add(f"r{i}", prompt(5, i), max_tokens=25, ignore_eos=True)
    engine.drain()
    engine.check_outputs()
    stats = engine.scheduler.snapshot()
    assert stats.preemptions > 0
    assert stats.recomputed_tokens > 0
    assert max(end.times.preemptions for end in engine.ends.values()) <= 2


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_a_plan_is_never_empty_while_a_running_request_could_run(budget):
    """Also where every decode in the budget preempts itself: with a shared prefix, least is lost with it. See `tick`."""
    protected = 0
    for seed in range(40):
        rng = random.Random(seed)
        blocks, preemptions = rng.randint(4, 10), rng.randint(1, 3)
        engine = Engine(
            blocks=blocks,
            max_step_tokens=budget,
            max_preemptions=preemptions,
            decode_watermark=0.0,
            prefix_lookahead=0,
        )
        for i in range(8):
            length, output = rng.choice([4, 5, 8, 9, 12]), rng.randint(1, 16)
            output = min(output, engine.config.context - length)
            engine.add(f"r{i}", prompt(length, rng.randint(0, 1)), max_tokens=output, ignore_eos=True)
            for _ in range(rng.randint(0, 12)):
                engine.tick()
        engine.drain()
        engine.check_outputs()
        protected += sum(end.times.preemptions == preemptions for end in engine.ends.values())
    assert (protected > 0) == (budget > 1), "with one token a step, a prompt starts only when no decode is ready"


def test_a_pool_for_one_and_a_half_requests_drains_with_little_recomputation():
    engine = Engine(blocks=12, max_step_tokens=32, decode_watermark=0.0)
    total = 0
    for i in range(10):
        engine.add(f"r{i}", prompt(8, i), max_tokens=24, ignore_eos=True)
        total += 32
    engine.drain()
    engine.check_outputs()
    assert engine.scheduler.snapshot().recomputed_tokens <= total


def test_a_newcomer_joins_the_step_that_was_planned_before_it_came():
    engine = Engine(blocks=64, max_step_tokens=32)
    engine.add("a", prompt(4), max_tokens=20, ignore_eos=True)
    engine.tick()
    engine.tick()
    assert engine.planned is not None
    engine.add("b", prompt(6, 1), max_tokens=2)
    seen = chunks(engine)
    engine.tick()
    assert seen == [{"a": 1, "b": 6}]
    engine.drain()
    engine.check_outputs()


def test_the_victim_has_the_lowest_priority():
    engine = Engine(blocks=10, max_step_tokens=32, decode_watermark=0.0)
    engine.add("high", prompt(8), max_tokens=30, ignore_eos=True, priority=-1)
    engine.add("low", prompt(8, 1), max_tokens=30, ignore_eos=True, priority=5)
    engine.drain()
    assert engine.ends["high"].times.preemptions == 0
    assert engine.ends["low"].times.preemptions >= 1
    engine.check_outputs()


def test_priority_then_first_come_first_served():
    engine = Engine(blocks=64, max_step_tokens=64, max_running=1)
    for name, priority in (("a", 1), ("b", 0), ("c", 0), ("d", -2)):
        engine.add(name, prompt(6, ord(name)), max_tokens=2, priority=priority)
    engine.drain()
    assert list(engine.ends) == ["d", "b", "c", "a"]


def test_all_decodes_advance_when_the_budget_is_smaller_than_their_number():
    engine = Engine(blocks=64, max_step_tokens=3, max_running=8)
    for i in range(8):
        engine.add(f"r{i}", prompt(2, i), max_tokens=12, ignore_eos=True)
    engine.drain()
    engine.check_outputs()


def test_abort_frees_at_once_and_keeps_full_blocks_cached():
    engine = Engine(blocks=16, max_step_tokens=64)
    engine.add("a", prompt(18), max_tokens=30, ignore_eos=True)
    for _ in range(3):
        engine.tick()
    engine.abort("a")
    stats = engine.scheduler.snapshot()
    assert (stats.blocks_used, stats.running) == (0, 0)
    assert stats.blocks_cached >= 4
    engine.drain()
    engine.add("b", prompt(18), max_tokens=2)
    engine.drain()
    assert engine.ends["b"].times.cached_tokens == 16
    engine.check_outputs()


@pytest.mark.parametrize("aborted", [False, True], ids=["eos", "abort"])
def test_a_block_whose_last_token_is_never_computed_is_never_reused(aborted):
    """The newest token fills a block, and its request ends before the step that would compute its KV."""
    start, output = next(
        (start, expected(start, SamplingParams(max_tokens=30), 1000))
        for start in (prompt(6, seed) for seed in range(1000))
        if len(expected(start, SamplingParams(max_tokens=30), 1000)) == 10
    )
    assert (len(start + output) % 4, output[-1]) == (0, EOS)
    engine = Engine(blocks=64)
    engine.add("turn1", start, max_tokens=30, ignore_eos=aborted)
    while engine.outputs["turn1"] != output:
        engine.tick()
    if aborted:
        engine.abort("turn1")
    engine.add("turn2", start + output + prompt(3), max_tokens=2, ignore_eos=True)
    engine.drain()
    engine.check_outputs()


def test_no_block_of_an_ended_request_is_given_away_before_its_last_chunk_ran():
    engine = Engine(blocks=64, max_step_tokens=16)
    engine.add("a", prompt(6), max_tokens=30, ignore_eos=True)
    engine.tick()
    engine.add("b", prompt(58, 1), max_tokens=3, ignore_eos=True)
    while not any(c.request_id == "b" and c.start + c.length == 58 for c in engine.planned.chunks):
        engine.tick()
    engine.abort("b")
    engine.add("c", prompt(5, 2), max_tokens=3, ignore_eos=True)
    engine.drain()
    engine.check_outputs()


def test_admission_leaves_the_watermark_free():
    engine = Engine(blocks=10, max_step_tokens=64, decode_watermark=0.3)
    engine.add("a", prompt(20), max_tokens=8, ignore_eos=True)
    engine.add("b", prompt(12, 1), max_tokens=8, ignore_eos=True)
    engine.tick()
    stats = engine.scheduler.snapshot()
    assert (stats.running, stats.waiting) == (1, 1), "5 of 10 are free, b needs 3 and 3 must stay"
    engine.drain()
    assert engine.scheduler.snapshot().preemptions == 0
    engine.check_outputs()


def test_what_cannot_fit_is_refused_with_both_numbers():
    engine = Engine(blocks=4)
    with pytest.raises(RequestTooLong, match=r"is 17, the longest request that fits is 16"):
        engine.add("a", prompt(10), max_tokens=7)
    with pytest.raises(ValueError, match="no tokens"):
        engine.add("a", [], max_tokens=7)
    engine.add("a", prompt(10), max_tokens=6)
    with pytest.raises(ValueError, match="in use"):
        engine.add("a", prompt(10), max_tokens=6)


def test_max_tokens_zero_computes_the_prompt_only():
    engine = Engine(blocks=16, max_step_tokens=4)
    engine.add("a", prompt(10), max_tokens=0, prompt_logprobs=0)
    engine.drain()
    engine.check_outputs()
    assert engine.ends["a"].finish_reason is FinishReason.LENGTH


def test_prompt_logprobs_compute_the_whole_prompt_even_when_cached():
    engine = Engine(blocks=64, max_step_tokens=5)
    engine.add("cold", prompt(21), max_tokens=1)
    engine.drain()
    engine.add("scored", prompt(21), max_tokens=1, prompt_logprobs=0)
    engine.drain()
    engine.check_outputs()
    assert engine.ends["scored"].times.cached_tokens == 0


def test_stop_tokens_and_min_tokens():

    free = expected(prompt(5), SamplingParams(max_tokens=30, ignore_eos=True), 1000)
    engine = Engine(blocks=64)
    engine.add("stop", prompt(5), max_tokens=30, ignore_eos=True, stop_token_ids=(free[3],))
    engine.add(
        "late", prompt(5), max_tokens=30, ignore_eos=True, stop_token_ids=(free[3],), min_tokens=free.index(free[3]) + 2
    )
    engine.drain()
    engine.check_outputs()
    assert engine.ends["stop"].stop_token == free[3]
    assert engine.outputs["stop"][-1] == free[3]
    assert len(engine.outputs["late"]) > len(engine.outputs["stop"])


def test_a_start_is_counted_once_however_often_it_is_repeated():
    """A step of others fails: what was admitted before is computed anew, and was still scheduled when it was scheduled."""
    engine = Engine(blocks=64, max_step_tokens=1)
    engine.add("first", prompt(9), max_tokens=1)
    engine.drain()
    engine.add("goes on", prompt(12), max_tokens=3, ignore_eos=True)
    engine.tick()
    engine.add("doomed", prompt(20, 5), priority=-1)
    engine.tick()
    engine.tick()
    before = replace(engine.scheduler.snapshot())
    scheduled = engine.scheduler._table.running["goes on"].times.scheduled
    engine.fail_step()
    engine.drain()
    engine.check_outputs()
    after = engine.scheduler.snapshot()
    assert engine.ends["doomed"].finish_reason is FinishReason.ERROR
    assert (before.prefix_query_tokens, before.prefix_hit_tokens) == (9 + 12 + 20, 8)
    assert (after.prefix_query_tokens, after.prefix_hit_tokens) == (9 + 12 + 20, 8)
    assert (engine.ends["goes on"].times.scheduled, engine.ends["goes on"].times.cached_tokens) == (scheduled, 8)


class SpoilingWorker(SimWorker):
    """While `spoils`, what it writes is no number; as in the real one, only a chunk that samples notices what it reads."""

    spoils = False

    def _write(self, chunk, written):
        super()._write(chunk, written)
        if self.spoils:
            for position in range(chunk.start, chunk.start + chunk.length):
                self.kv[chunk.block_table[position // self.block_size]][position % self.block_size] = None

    def _result(self, chunk):
        end = chunk.start + chunk.length
        read = (self.kv[chunk.block_table[i // self.block_size]][i % self.block_size] for i in range(end))
        if None not in read:
            return super()._result(chunk)
        return ChunkResult(request_id=chunk.request_id, error="not finite" if chunk.samples else None)


def test_what_a_failed_request_computed_or_read_is_not_reused():
    worker = SpoilingWorker(64, 4)
    engine = Engine(blocks=64, max_step_tokens=8, worker=worker)
    worker.spoils = True
    engine.add("published, then gone", prompt(21), max_tokens=3)
    for _ in range(2):
        engine.tick()
    engine.abort("published, then gone")
    assert engine.scheduler.pool.cached == 5, "planned, published, and still to be computed in part"
    engine.tick()
    worker.spoils = False
    for name in ("one reader", "another"):
        engine.add(name, prompt(21), max_tokens=3)
    engine.drain()
    assert engine.ends["one reader"].finish_reason is engine.ends["another"].finish_reason is FinishReason.ERROR
    for name in ("one reader", "another"):
        del engine.requests[name]
    engine.add("next", prompt(21), max_tokens=3)
    engine.drain()
    engine.check_outputs()
    assert engine.ends["next"].times.cached_tokens == 0


def test_steps_that_fail_together_end_the_requests_of_all():
    engine = Engine(blocks=16, max_step_tokens=8)
    scheduler = engine.scheduler
    engine.add("first", [1] * 8)
    steps = [scheduler.schedule(0.0)]
    engine.add("second", [2] * 4)
    steps.append(scheduler.schedule(0.0))
    engine.add("third", [3] * 4)
    assert [[chunk.request_id for chunk in step.chunks] for step in steps] == [["first"], ["first", "second"]]
    ended = scheduler.fail(steps, None, "injected", 1.0)
    scheduler.check_integrity()
    assert [(output.request_id, output.error) for output in ended] == [("first", "injected"), ("second", "injected")]
    for output in ended:
        del engine.requests[output.request_id]
    engine.drain()
    engine.check_outputs()
    assert engine.ends.keys() == {"third"}
