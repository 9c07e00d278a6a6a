"""Virtual token counters: the paper's bound, weights, lifts, and what a tenant behind may take from one ahead."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.policies import fair
from scheduler.policies.fair import UNIT, FairPolicy
from scheduler.policies.token_cost import DEFAULT, LEAST, MOST, TokenCost
from scheduler.types.step import Chunk, ChunkPhase, ChunkResult, Step, StepResult
from tests.drawn import drawn
from tests.scheduler.sim import Engine
from tests.scheduler.sim_worker import VOCAB

OUTPUT = 10
PROMPT = 16


def prompt(length, seed=0):
    return [(seed * 31 + seed // 40 + i * 7) % (VOCAB - 10) + 10 for i in range(length)]


def engine_of(scheduling="fair", **config):
    shape = {"blocks": 24, "context": 40, "max_step_tokens": 12, "decode_price": 2.0}
    return Engine(scheduling=scheduling, **{**shape, **config})


class Served:
    """What each tenant was given, in prompt tokens, counted from outside: each position of each sequence once."""

    def __init__(self, engine):
        self.engine = engine
        self.served = {}
        self.reached = {}
        engine.after_step = self.count

    def count(self, step):
        for chunk in step.chunks:
            message = self.engine.requests[chunk.request_id]
            end, begin = chunk.start + chunk.length, max(chunk.start, self.reached.get(chunk.request_id, 0))
            if end <= begin:
                continue
            self.reached[chunk.request_id] = end
            prompts = max(0, min(end, len(message.prompt_ids)) - begin)
            self.served[message.tenant] = self.served.get(message.tenant, 0) + prompts + 2 * (end - begin - prompts)


def backlog(engine, tenants, many, lengths, weights=None):
    """Everything of one tenant comes before anything of the next. `weights`: those that come with requests."""
    number = 0
    for tenant in tenants:
        for _ in range(many):
            length, output = lengths[number % len(lengths)]
            said = {"tenant": tenant, "weight": (weights or {}).get(tenant, 1.0)}
            engine.add(f"{tenant}{number}", prompt(length, number), max_tokens=output, ignore_eos=True, **said)
            number += 1


def largest_difference(engine, tenants, weights=None):
    """Of the service of any two tenants, at any time while all of them have requests waiting; in prompt tokens."""
    served, worst, weights = Served(engine), 0.0, weights or {}
    while {r.tenant for r in engine.scheduler._table.waiting} == set(tenants):
        engine.tick()
        given_to = {tenant: served.served.get(tenant, 0) / weights.get(tenant, 1.0) for tenant in tenants}
        worst = max([worst, *(abs(given_to[a] - given_to[b]) for a, b in combinations(tenants, 2))])
    return worst


LENGTHS = st.lists(st.tuples(st.integers(1, PROMPT), st.integers(1, OUTPUT)), min_size=3, max_size=9)


@settings(max_examples=drawn(20))
@given(
    LENGTHS,
    st.integers(2, 3),
    st.integers(10, 24),
    st.integers(1, 8),
    st.sampled_from([3, 12, 40]),
    st.sampled_from([{}, {"a": 3.0}, {"b": 0.5}]),
)
def test_busy_tenants_stay_within_the_papers_bound(lengths, many, blocks, slots, budget, weights):
    """Theorem 4.4: twice max(w_p * longest prompt, w_q * tokens of the batch), here through the pool's size."""
    tenants = "abc"[:many]
    engine = engine_of(blocks=blocks, max_running=slots, max_step_tokens=budget, tenant_weights=weights)
    backlog(engine, tenants, 25, lengths)
    bound = 2 * max(PROMPT, 2 * min(blocks * 4, slots * (PROMPT + OUTPUT))) / min([1.0, *weights.values()])
    assert largest_difference(engine, tenants, weights) <= bound
    engine.drain()
    engine.check_outputs()


def test_without_counters_the_difference_is_unbounded():
    lengths = [(12, 6), (5, 9), (9, 3)]
    difference = {}
    for scheduling in ("fcfs", "fair"):
        engine = engine_of(scheduling, blocks=14, max_running=2)
        backlog(engine, "ab", 100, lengths)
        difference[scheduling] = largest_difference(engine, "ab")
        engine.drain()
    assert difference["fair"] <= 2 * 2 * 2 * (PROMPT + OUTPUT) < difference["fcfs"] / 4


@pytest.mark.parametrize(("weight", "set_at_start"), [(1.0, True), (3.0, True), (3.0, False)])
def test_service_goes_by_weight(weight, set_at_start):
    weights = {"heavy": weight}
    engine = engine_of(max_running=2, tenant_weights=weights if set_at_start else {})
    backlog(engine, ["heavy", "light"], 60, [(8, 5)], {"heavy": 0.5} if set_at_start else weights)
    served = Served(engine)
    while {r.tenant for r in engine.scheduler._table.waiting} == {"heavy", "light"}:
        engine.tick()
    assert served.served["heavy"] / served.served["light"] == pytest.approx(weight, rel=0.1)


def counters(engine):
    return {tenant: counter / UNIT for tenant, counter in engine.scheduler._policy.counters.items()}


def test_time_away_gives_no_claim_beyond_the_credit():
    engine = engine_of(max_running=1)
    engine.add("early", prompt(4, 1), max_tokens=1, tenant="away")
    engine.drain()
    backlog(engine, ["busy"], 40, [(16, 8)])
    for _ in range(150):
        engine.tick()
    engine.add("late", prompt(4, 2), max_tokens=1, tenant="away")
    engine.add("new", prompt(4, 3), max_tokens=1, tenant="new")
    now = counters(engine)
    assert now["busy"] > 400
    assert now["away"] == now["new"] == now["busy"] - 2 * engine.config.context
    engine.drain()


def test_newcomers_do_not_pull_each_other_down():
    engine = engine_of(max_running=1)
    for i in range(20):
        engine.add(f"r{i}", prompt(6, i), max_tokens=3, tenant=f"t{i}")
    assert set(counters(engine).values()) == {-2.0 * engine.config.context}
    engine.drain()


def test_cached_tokens_and_tokens_computed_again_cost_nothing():
    engine = engine_of(blocks=16, max_running=2, decode_watermark=0.0)
    start = -2.0 * engine.config.context
    engine.add("cold", prompt(17), max_tokens=1, tenant="a")
    engine.drain()
    engine.add("warm", prompt(17), max_tokens=1, tenant="b")
    engine.drain()
    assert counters(engine) == {"a": start + 17, "b": start + 1}
    for i in range(2):
        engine.add(f"r{i}", prompt(4, i + 5), max_tokens=34, ignore_eos=True, tenant="c")
    engine.drain()
    assert engine.scheduler.snapshot().recomputed_tokens > 0
    assert counters(engine)["c"] - start == 2 * (4 + 2 * 33)


def aggressor(engine, many=20, output=20):
    for i in range(many):
        engine.add(f"heavy{i}", prompt(8, i), max_tokens=output, ignore_eos=True, tenant="heavy")


def until_decoding(engine, many):
    """Run until that many decode that have just begun to."""
    for _ in range(200):
        engine.tick()
        running = engine.scheduler._table.running.values()
        if len(running) == many and all(r.decodes and len(r.tokens) < 20 for r in running):
            return
    raise AssertionError("it never comes to that")


def test_a_tenant_behind_takes_a_slot_of_one_ahead_and_keeps_it():
    engine = engine_of(blocks=64, max_running=3)
    aggressor(engine, output=30)
    for _ in range(30):
        engine.tick()
    until_decoding(engine, 3)
    engine.add("light", prompt(9, 99), max_tokens=12, ignore_eos=True, tenant="light")
    engine.tick()
    assert "light" in engine.scheduler._table.running and len(engine.scheduler._table.running) == 3
    engine.drain()
    engine.check_outputs()
    assert engine.ends["light"].times.preemptions == 0
    assert sum(end.times.preemptions for end in engine.ends.values()) == 1, "nobody takes it back"


def test_a_prompt_of_a_tenant_behind_is_computed_before_tokens_of_one_ahead():
    engine = engine_of(blocks=96, max_running=6, max_step_tokens=8)
    aggressor(engine, output=30)
    for _ in range(60):
        engine.tick()
    until_decoding(engine, 6)
    engine.add("light", prompt(30, 99), max_tokens=2, ignore_eos=True, tenant="light")
    shares = []
    engine.after_step = lambda step: shares.append({c.request_id: c.length for c in step.chunks})
    for _ in range(6):
        engine.tick()
    of_light = [step.get("light") for step in shares if "light" in step]
    assert of_light[:4] == [8, 8, 8, 6], "a slot of another, and whole steps"
    engine.drain()
    engine.check_outputs()


def test_nothing_is_kept_idle_for_anybody():
    """One tenant alone is served as without tenants: same steps, same ends."""

    def ends(scheduling):
        engine = engine_of(scheduling, blocks=20, max_running=4)
        aggressor(engine)
        engine.drain()
        return [(name, end.times.finished, end.times.preemptions) for name, end in engine.ends.items()]

    assert ends("fair") == ends("priority")


def test_priority_goes_before_counters():
    engine = engine_of(max_running=1)
    aggressor(engine, many=4)
    engine.add("light", prompt(4, 70), max_tokens=2, tenant="light", priority=1)
    engine.add("urgent", prompt(4, 71), max_tokens=2, tenant="heavy", priority=-1)
    engine.drain()
    assert next(iter(engine.ends)) == "urgent" and list(engine.ends)[-1] == "light"


@settings(max_examples=drawn(25))
@given(
    st.lists(
        st.tuples(st.integers(1, PROMPT), st.integers(1, OUTPUT), st.sampled_from("abc"), st.integers(0, 9)),
        min_size=4,
        max_size=40,
    ),
    st.integers(1, 4),
)
def test_what_is_thrown_away_never_exceeds_what_is_served(requests, slots):
    engine = engine_of(blocks=12, max_running=slots, decode_watermark=0.0)
    total = 0
    for number, (length, output, tenant, ticks) in enumerate(requests):
        engine.add(f"r{number}", prompt(length, number), max_tokens=output, ignore_eos=True, tenant=tenant)
        total += length + output
        for _ in range(ticks):
            engine.tick()
    engine.drain()
    engine.check_outputs()
    assert engine.scheduler.snapshot().recomputed_tokens <= total


def test_tenants_that_are_gone_are_forgotten_but_for_so_many(monkeypatch):
    monkeypatch.setattr(fair, "MAX_TENANTS", 30)
    engine = engine_of(blocks=24, max_running=8)
    for i in range(2 * fair.MAX_TENANTS + 40):
        engine.add(f"r{i}", [10, 11], max_tokens=0, tenant=f"t{i}")
        if i % 8 == 7:
            engine.drain()
    engine.drain()
    assert len(engine.scheduler._policy.counters) <= 2 * fair.MAX_TENANTS


def test_a_price_is_measured_where_steps_differ():
    cost = TokenCost()
    for i in range(400):
        prompts, decodes = (120, 4) if i % 3 else (0, 30)
        cost.observe(prompts, decodes, prompts * 0.4e-3 + decodes * 1.4e-3)
    assert cost.decode == pytest.approx(3.5, rel=1e-6)


@pytest.mark.parametrize(
    ("given_price", "seconds", "expected"),
    [(None, 0.0, DEFAULT), (7.0, 1e-3, 7.0), (None, 1.0, MOST), (None, 1e-9, LEAST)],
    ids=["not measured", "given", "too dear", "too cheap"],
)
def test_a_price_is_kept_within_reason(given_price, seconds, expected):
    cost = TokenCost(given_price)
    for i in range(200):
        prompts, decodes = (100, 0) if i % 2 else (0, 10)
        cost.observe(prompts, decodes, prompts * min(seconds, 1e-3) + decodes * seconds)
    assert cost.decode == pytest.approx(expected)


def test_the_time_that_rejected_drafts_take_makes_the_tokens_dearer_that_a_tenant_gets():
    """Positions cost what they cost, tokens are what is paid. Here each of the 4 positions of a decode takes as long as one of a
    prompt, and
    one token comes of them."""
    policy = FairPolicy(TokenCost(), credit=0, margin=0, weights={})
    for number in range(100):
        prompt_tokens, decodes = 20 + number % 7, 1 + number % 5
        chunks = [Chunk(request_id="p", start=0, length=prompt_tokens, block_table=[], phase=ChunkPhase.PREFILL)]
        chunks += [
            Chunk(
                request_id="d",
                start=9,
                length=4,
                block_table=[],
                phase=ChunkPhase.DECODE,
                samples=4,
                draft_ids=[1, 2, 3],
            )
            for _ in range(decodes)
        ]
        results = [ChunkResult(request_id=c.request_id, token_ids=[9] if c.draft_ids else []) for c in chunks]
        step = Step(step_id=number, chunks=chunks)
        policy.on_step(step, StepResult(step_id=number, results=results, seconds=step.tokens * 1e-3))
    assert policy._cost.decode == pytest.approx(4.0)


def test_steps_of_one_kind_tell_no_price():
    cost = TokenCost()
    for _ in range(300):
        cost.observe(0, 20, 0.5)
    assert cost.decode == DEFAULT
