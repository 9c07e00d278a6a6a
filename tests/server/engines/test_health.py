"""Alive, silent or stuck: told from what an engine lets know, without asking it for anything."""

import pytest

from scheduler.types.messages import EngineStats, Heartbeat, StepOutputs, Stopping
from server.engines.health import Liveness

HEALTH, HANG = 20.0, 120.0


def step(seconds, tokens):
    return StepOutputs(outputs=[], stats=EngineStats(), step_seconds=seconds, step_tokens=tokens)


def waiting(seconds, tokens=128, doing="step"):
    return Heartbeat(doing=doing, seconds=seconds, tokens=tokens)


@pytest.fixture
def liveness():
    return Liveness(HANG)


def test_silence_is_a_hang_after_five_heartbeats(liveness):
    liveness.passed(5.0)
    assert liveness.hang(0.0, HEALTH) is None
    liveness.passed(0.5)
    assert liveness.hang(0.0, HEALTH) == "has said nothing for 5 s"
    assert liveness.hang(HANG, HANG) is None  # not yet for who would kill it
    liveness.heard(Heartbeat(doing="idle"))
    assert liveness.hang(0.0, HEALTH) is None


def test_an_engine_that_has_said_that_it_stops_does_not_hang(liveness):
    liveness.heard(waiting(500.0, doing="transfer"))
    liveness.heard(Stopping())
    liveness.passed(600.0)
    assert liveness.hang(0.0, HEALTH) is None and liveness.hang(HANG, HANG) is None
    liveness.restarted()
    liveness.passed(6.0)
    assert liveness.hang(0.0, HEALTH) is not None, "the next one may"


def test_a_step_is_given_the_floor_and_no_more_where_steps_are_fast(liveness):
    liveness.heard(step(0.1, 128))
    liveness.heard(waiting(20.0))
    assert liveness.hang(0.0, HEALTH) is None
    liveness.heard(waiting(21.0))
    assert liveness.hang(0.0, HEALTH) == "has waited for 21 s for a step of 128 tokens"
    liveness.heard(step(21.5, 128))
    assert liveness.hang(0.0, HEALTH) is None


def test_a_large_chunk_on_a_slow_cpu_is_not_stuck(liveness):
    """7 B weights at 20 GB/s: 0.7 s for a decoded token, half a minute for a chunk of 128."""
    for _ in range(10):
        liveness.heard(step(0.7, 1))
    liveness.heard(waiting(300.0))
    assert liveness.hang(0.0, HEALTH) is None and liveness.hang(HANG, HANG) is None
    liveness.heard(waiting(360.0))
    assert liveness.hang(0.0, HEALTH) is not None and liveness.hang(HANG, HANG) is not None
    liveness.heard(waiting(25.0, tokens=1))
    assert liveness.hang(0.0, HEALTH) is not None, "a decoded token is not a chunk"


def test_before_any_step_has_ended_the_first_may_take_as_long_as_a_hang(liveness):
    liveness.heard(waiting(119.0))
    assert liveness.hang(0.0, HEALTH) is None
    liveness.heard(waiting(121.0))
    assert liveness.hang(0.0, HEALTH) is not None


def test_steps_long_past_do_not_excuse_a_hang(liveness):
    liveness.heard(step(100.0, 1))
    for _ in range(32):
        liveness.heard(step(0.01, 1))
    liveness.heard(waiting(21.0))
    assert liveness.hang(0.0, HEALTH) is not None


def test_a_tier_that_no_longer_answers_is_a_hang(liveness):
    liveness.heard(waiting(21.0, tokens=0, doing="transfer"))
    assert liveness.hang(0.0, HEALTH) == "has waited for 21 s for a transfer between KV tiers"
    liveness.heard(Heartbeat(doing="idle", seconds=1e6))
    assert liveness.hang(0.0, HEALTH) is None and liveness.doing == "idle"


def test_another_incarnation_begins_anew(liveness):
    liveness.heard(waiting(1e6))
    liveness.passed(1e6)
    liveness.restarted()
    assert liveness.hang(0.0, HEALTH) is None
