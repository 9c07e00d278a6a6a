"""Roles follow what the phases need, slowly: never twice within a drain, never a phase without an engine."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.router.role_switching import (
    GOAL,
    LEAST,
    MOST_PATIENCE,
    PhaseBounds,
    RequestProgress,
    RoleSwitch,
    RoleSwitching,
)
from scheduler.router.view import Role
from scheduler.types.step import ChunkPhase

BOUNDS = PhaseBounds(ttft=1.0, tpot=0.1)
SETTLING = 15.0


@dataclass
class Engine:
    role: Role
    request_ids: set[str] = field(default_factory=set)
    available: bool = True


def ended(received: float, ttft: float, tpot: float, tokens: int = 11) -> tuple[RequestProgress, float]:
    first = received + ttft
    last = first + tpot * (tokens - 1)
    return RequestProgress(received, first, last, tokens), last


def feed(switching: RoleSwitching, now: float, first: float, pace: float, many: int = 100, tpot: float = 0.02) -> None:
    """Requests that end now, of which these shares keep their bounds; those that do take `tpot` seconds a token."""
    for index in range(many):
        ttft = 0.2 if index < first * many else 2.0
        request, end = ended(0.0, ttft, tpot if index < pace * many else 0.2)
        switching.ended(RequestProgress(*(at + now - end for at in request[:3]), request.tokens), now)  # type: ignore[misc]


def pool(text: str, *, busy: int = 2) -> list[Engine]:
    roles = {"m": Role.MIXED, "p": Role.PREFILL, "d": Role.DECODE}
    return [Engine(roles[letter], {f"{index}-{n}" for n in range(busy)}) for index, letter in enumerate(text)]


def look(switching: RoleSwitching, engines: list[Engine], now: float, *open_: RequestProgress) -> RoleSwitch | None:
    """What a server does each second."""
    switch = switching.look(engines, open_, now)
    if switch is not None:
        assert engines[switch.engine].role is switch.before is not switch.after
        engines[switch.engine].role = switch.after
    return switch


def spelled(engines: list[Engine]) -> str:
    return "".join(engine.role[0] for engine in engines)


@pytest.mark.parametrize(
    ("before", "first", "pace", "after"),
    [
        ("ppdd", 0.5, 1.0, "pppd"),  # first tokens are late
        ("ppdd", 1.0, 0.5, "dpdd"),
        ("ppdd", 0.95, 0.92, "ppdd"),  # both do well
        ("ppdd", 0.5, 0.55, "ppdd"),  # both are overloaded: nobody has anything to give
        ("ppdd", 0.2, 0.6, "ppdd"),
        ("pd", 0.5, 1.0, "pd"),  # the last one that decodes goes on doing so
        ("pm", 1.0, 0.5, "dm"),
        ("dm", 1.0, 0.5, "dm"),  # the mixed one is the only one that takes prompts
        ("dm", 0.5, 1.0, "pm"),
        ("pmd", 1.0, 0.5, "dmd"),  # a mixed one decodes already
        ("mm", 0.5, 1.0, "pm"),
    ],
)
def test_the_phase_that_is_behind_gets_an_engine(before, first, pace, after):
    switching, engines = RoleSwitching(BOUNDS), pool(before)
    feed(switching, 100.0, first, pace)
    switch = look(switching, engines, 100.0)
    assert spelled(engines) == after
    if switch is not None:
        assert switch.behind is (ChunkPhase.PREFILL if first < pace else ChunkPhase.DECODE)
        assert f"{first:.0%}" in str(switch) and f"{pace:.0%}" in str(switch)


def test_the_idle_one_goes_then_the_one_with_least_to_do():
    engines = pool("pddd")
    engines[1].request_ids, engines[2].request_ids, engines[3].request_ids = {"a", "b"}, {"c"}, set()
    switching = RoleSwitching(BOUNDS)
    feed(switching, 50.0, 0.5, 1.0)
    assert look(switching, engines, 50.0).engine == 3
    engines = pool("pddd")
    engines[2].request_ids, engines[3].available = {"c"}, False
    engines[3].request_ids = set()
    switching = RoleSwitching(BOUNDS)
    feed(switching, 50.0, 0.5, 1.0)
    assert look(switching, engines, 50.0).engine == 2


def test_engines_that_take_nothing_keep_no_phase():
    engines = pool("pdd")
    engines[1].available = False
    switching = RoleSwitching(BOUNDS)
    feed(switching, 50.0, 0.5, 1.0)
    assert look(switching, engines, 50.0) is None
    engines[1].available = True
    assert look(switching, engines, 51.0) is not None


@pytest.mark.parametrize(
    ("engines", "pace", "spared"), [("pdd", 0.049, True), ("pdd", 0.051, False), ("pddddd", 0.079, True)]
)
def test_a_phase_gives_what_it_can_spare(engines, pace, spared):
    """With half of its engines, tokens would take twice as long."""
    switching = RoleSwitching(BOUNDS)
    feed(switching, 50.0, 0.5, 1.0, tpot=pace)
    assert (look(switching, pool(engines), 50.0) is not None) == spared


def test_few_requests_say_nothing():
    switching, engines = RoleSwitching(BOUNDS), pool("ppdd")
    feed(switching, 10.0, 0.0, 1.0, many=LEAST - 1)
    assert look(switching, engines, 10.0) is None
    feed(switching, 10.0, 0.0, 1.0, many=1)
    assert look(switching, engines, 10.0) is not None


def test_what_ended_long_ago_says_nothing():
    switching, engines = RoleSwitching(BOUNDS, window=30.0), pool("ppdd")
    feed(switching, 10.0, 0.0, 1.0)
    assert look(switching, engines, 40.1) is None


def test_requests_that_wait_too_long_already_are_late():
    """A phase may be so far behind that nothing ends."""
    waiting = [RequestProgress(10.0, None, None, 0)] * LEAST
    assert look(RoleSwitching(BOUNDS), pool("ppdd"), 10.9, *waiting) is None
    assert look(RoleSwitching(BOUNDS), pool("ppdd"), 11.1, *waiting).behind is ChunkPhase.PREFILL
    stuck = [RequestProgress(10.0, 10.2, 10.2, 1)] * LEAST  # handed over, and nothing since
    assert look(RoleSwitching(BOUNDS), pool("ppdd"), 11.0, *stuck) is None
    assert look(RoleSwitching(BOUNDS), pool("ppdd"), 11.2, *stuck).behind is ChunkPhase.DECODE
    slow = [RequestProgress(10.0, 10.2, 12.2, 20)] * LEAST
    assert look(RoleSwitching(BOUNDS), pool("ppdd"), 12.2, *slow).behind is ChunkPhase.DECODE


def test_the_drain_is_waited_for_and_requests_before_its_end_are_not_judged():
    switching, engines = RoleSwitching(BOUNDS, settling=SETTLING), pool("ppddd")
    feed(switching, 100.0, 0.5, 1.0)
    assert look(switching, engines, 100.0).engine == 2
    for now in range(101, 160):
        feed(switching, float(now), 0.5, 1.0)
        assert look(switching, engines, float(now)) is None
    engines[2].request_ids = {"new"}  # what was open at the switch has ended at 160
    old = [RequestProgress(120.0, None, None, 0)] * LEAST
    for tenth in range(1600, 1600 + int(10 * SETTLING) - 10):
        assert look(switching, engines, tenth / 10, *old) is None
    assert look(switching, engines, 200.0, *old) is None, "they came before"
    feed(switching, 200.0, 0.5, 1.0)
    assert look(switching, engines, 200.0).engine == 3


def swings(pools: Iterator[float]) -> list[float]:
    """A pool between two splits, of which each leaves one phase far behind: when it switches."""
    switching, engines, times = RoleSwitching(BOUNDS, settling=SETTLING), pool("pppdd", busy=0), []
    for now in pools:
        many = sum(engine.role is Role.PREFILL for engine in engines)
        feed(switching, now, *((0.5, 1.0) if many < 3 else (1.0, 0.5)), many=LEAST)
        if look(switching, engines, now) is not None:
            times.append(now)
    return times


def test_switches_back_and_forth_become_rare():
    times = swings(float(now) for now in range(0, 8000, 5))
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps[:4] == [SETTLING, 2 * SETTLING, 4 * SETTLING, 8 * SETTLING]
    assert max(gaps) == MOST_PATIENCE * SETTLING
    assert len(times) < 8000 / (MOST_PATIENCE * SETTLING) + 8


def test_after_a_long_time_a_switch_back_is_prompt_again():
    switching, engines = RoleSwitching(BOUNDS, settling=SETTLING), pool("ppdd", busy=0)
    for now, first, pace in [(100.0, 0.5, 1.0), (116.0, 1.0, 0.5), (1000.0, 0.5, 1.0), (1016.0, 1.0, 0.5)]:
        feed(switching, now, first, pace)
        assert look(switching, engines, now) is not None, now


shares = st.tuples(st.floats(0, 1), st.floats(0, 1))


@given(st.text("pdm", min_size=1, max_size=6), st.lists(shares, min_size=5, max_size=60), st.integers(0, 2**32))
def test_never_twice_within_a_drain_never_a_phase_without_an_engine(roles, attainments, seed):
    rng, engines, now = random.Random(seed), pool(roles), 0.0
    switching = RoleSwitching(BOUNDS, settling=2.0)
    taken = {phase for phase in ChunkPhase if any(engine.role.takes(phase) for engine in engines)}
    draining: set[str] = set()
    drained = float("-inf")
    for number, (first, pace) in enumerate(attainments):
        now += rng.choice((0.5, 1.0, 5.0))
        feed(switching, now, first, pace, many=rng.choice((3, 40)))
        for index, engine in enumerate(engines):
            engine.request_ids = {name for name in engine.request_ids if rng.random() < 0.8} | {f"{index}+{number}"}
        at_drain = bool(draining) and not draining & set().union(*(engine.request_ids for engine in engines))
        drained = now if draining and not at_drain else drained
        draining = set() if at_drain else draining
        switch = look(switching, engines, now)
        if switch is not None:
            assert not draining, "the engine switched last has not drained"
            assert now >= drained + 2.0 or drained == float("-inf")
            draining = set(engines[switch.engine].request_ids)
            behind, other = switch.attainment if switch.behind is ChunkPhase.PREFILL else switch.attainment[::-1]
            assert behind is not None and behind < GOAL and (other is None or other > behind)
            drained = now
        for phase in taken:
            assert any(engine.role.takes(phase) for engine in engines)
