"""Decodes that wait for results because guesses may follow: they decode in every step all the same, and keep their tokens."""

import pytest

from scheduler.types.messages import IDLE_PRIORITY, FinishReason
from tests.scheduler.sim import Engine
from tests.scheduler.test_seam_tokens import ToyDrafter

BUDGET = 32


class Waits(ToyDrafter):
    """Holds all back, and has no guess."""

    def __init__(self):
        super().__init__(0, 0.0)


def lengths(engine, ticks):
    """Of each step, tokens by the first letter of the requests' names."""
    found = []

    def note(step):
        counts = {}
        for chunk in step.chunks:
            counts[chunk.request_id[0]] = counts.get(chunk.request_id[0], 0) + chunk.length
        found.append(counts)

    engine.after_step = note
    for _ in range(ticks):
        engine.tick()
    return found


def decoding(count, **config):
    engine = Engine(blocks=4000, drafter=Waits(), max_step_tokens=BUDGET, context=8000, **config)
    for i in range(count):
        engine.add(f"d{i}", [1 + i, 2, 3, 5 + i], max_tokens=400, ignore_eos=True)
    for _ in range(6):
        engine.tick()
    return engine


@pytest.mark.parametrize("decodes", [1, 4, BUDGET])
def test_a_prompt_leaves_them_their_tokens(decodes):
    engine = decoding(decodes)
    engine.add("long", [(7 * i * i + 3 * i) % 50 + 1 for i in range(600)], max_tokens=2, ignore_eos=True)
    steps = [step for step in lengths(engine, 25) if step.get("l", 0) > 1]
    assert len(steps) > 10
    most = BUDGET - BUDGET // 8
    assert all(step["d"] == min(decodes, most) for step in steps[1:]), "as many as without guesses"
    assert all(step["d"] + step["l"] == BUDGET for step in steps[1:-1])


@pytest.mark.parametrize("prompt", [3, 200])
def test_idle_requests_have_no_more_beside_them(prompt):
    engine = decoding(2, idle_step_tokens=8)
    for i in range(20):
        ids = [(7 * k * k + 3 * k + i) % 50 + 1 for k in range(prompt)]
        engine.add(f"i{i}", ids, max_tokens=60, ignore_eos=True, priority=IDLE_PRIORITY)
    steps = lengths(engine, 60)
    assert max(step.get("i", 0) for step in steps) == 2, "a quarter of their share"
    assert sum(step.get("i", 0) for step in steps) > 60
    assert all(step["d"] == 2 for step in steps)


def test_guesses_for_idle_requests_are_within_their_share():
    engine = Engine(blocks=400, drafter=ToyDrafter(6, 0.0), max_step_tokens=BUDGET, context=1000, idle_step_tokens=8)
    for i in range(3):
        engine.add(f"i{i}", [1 + i, 2, 3], max_tokens=60, ignore_eos=True, priority=IDLE_PRIORITY)
    steps = lengths(engine, 20)
    assert max(step.get("i", 0) for step in steps) == 8 and engine.scheduler.stats.drafts_accepted > 20


def test_the_scheduler_tells_what_became_of_guesses():
    told, seen = [], []

    class Told(ToyDrafter):
        def verified(self, request_id, proposed, accepted):
            told.append((request_id, proposed, accepted))

        def observe(self, rows, tokens, seconds):
            seen.append((rows, tokens))

    engine = Engine(blocks=400, drafter=Told(4, 0.3), max_step_tokens=BUDGET, context=1000)
    for i in range(3):
        engine.add(f"r{i}", [1 + i, 2, 3], max_tokens=30, ignore_eos=True)
    engine.drain()
    stats = engine.scheduler.stats
    assert {name for name, _, _ in told} == {"r0", "r1", "r2"}
    assert sum(proposed for _, proposed, _ in told) == stats.drafts_proposed
    assert sum(accepted for _, _, accepted in told) == stats.drafts_accepted
    assert all(0 <= accepted <= proposed <= 4 for _, proposed, accepted in told)
    assert sum(tokens for _, tokens in seen) == 3 * 30 - 3, "the first token of each comes with its prompt"
    assert sum(rows for rows, _ in seen) > stats.drafts_proposed


def test_what_was_guessed_right_behind_an_end_is_not_counted():
    """The worker knows no ends: it samples as far as guesses hold."""
    engine = Engine(blocks=400, drafter=ToyDrafter(16, 0.0), max_step_tokens=64, context=400)
    for i in range(30):
        engine.add(f"r{i}", [1 + i, 2, 3], max_tokens=100)
    engine.drain()
    ended = [name for name, end in engine.ends.items() if end.finish_reason is FinishReason.STOP]
    assert ended, "some end in the middle of what was guessed"
    for name, end in engine.ends.items():
        counted, got = end.times.drafts_accepted, len(engine.outputs[name])
        assert counted < got, "the first token of an answer is never a guess"
    assert engine.scheduler.stats.drafts_accepted == sum(end.times.drafts_accepted for end in engine.ends.values())
