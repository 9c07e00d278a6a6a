"""Which replica a policy chooses, given what it sees of each."""

import logging

import pytest

from scheduler.router.least_work import LeastWork
from scheduler.router.policies import ROUTERS, make_router
from scheduler.router.prefix_aware import PrefixAware
from scheduler.router.round_robin import RoundRobin
from scheduler.router.view import ReplicaView, Role
from scheduler.types.step import ChunkPhase

PREFILL, DECODE = ChunkPhase.PREFILL, ChunkPhase.DECODE
PROMPT = [1] * 70


def test_turns_go_round_whatever_the_load():
    router, replicas = RoundRobin(), [ReplicaView(open=9, waiting_seconds=5.0), ReplicaView()]
    assert [router.choose(PROMPT, replicas, PREFILL) for _ in range(4)] == [0, 1, 0, 1]


def test_least_work_goes_where_prompts_wait_the_shortest_then_where_the_fewest_are_open():
    router = LeastWork()
    replicas = [ReplicaView(waiting_seconds=seconds, open=count) for seconds, count in ((2.0, 0), (1.0, 9), (1.05, 3))]
    assert router.choose(PROMPT, replicas, PREFILL) == 2, "5 % more is no more"
    assert router.choose(PROMPT, replicas[:2], PREFILL) == 1
    assert router.choose(PROMPT, [ReplicaView(open=2), ReplicaView(open=1), ReplicaView(open=1)], PREFILL) == 1


def test_prefix_aware_goes_where_the_first_token_is_expected_the_soonest():
    replicas = [
        ReplicaView(first_token_seconds=1.0, cached_tokens=64),
        ReplicaView(first_token_seconds=0.5, running=9),
        ReplicaView(first_token_seconds=0.7),
    ]
    assert PrefixAware().choose(PROMPT, replicas, PREFILL) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"running": 2}, {"running": 1, "computed_tokens": 900}),
        ({"running": 1}, {"running": 1, "cached_tokens": 32, "computed_tokens": 900}),
        ({"running": 1}, {"running": 1, "tier_tokens": 32, "computed_tokens": 900}),
        ({"computed_tokens": 900}, {}),
    ],
)
def test_of_equal_ones_the_idlest_then_the_one_that_knows_the_prompt_then_the_one_that_computed_least(one, other):
    views = [ReplicaView(first_token_seconds=1.0, **one), ReplicaView(first_token_seconds=1.02, **other)]
    assert PrefixAware().choose(PROMPT, views, PREFILL) == 1
    assert PrefixAware().choose(PROMPT, views[::-1], PREFILL) == 0


def test_tokens_that_would_come_too_slowly_are_avoided_while_they_can_be():
    fast = ReplicaView(first_token_seconds=3.0, decode_seconds=0.04)
    slow = ReplicaView(first_token_seconds=0.1, decode_seconds=0.06)
    assert PrefixAware().choose(PROMPT, [fast, slow], PREFILL) == 1
    assert PrefixAware(decode_slo=0.05).choose(PROMPT, [fast, slow], PREFILL) == 0
    assert PrefixAware(decode_slo=0.03).choose(PROMPT, [fast, slow], PREFILL) == 1, "too slow everywhere"


@pytest.mark.parametrize("name", ROUTERS[1:])
def test_decodes_go_where_tokens_follow_each_other_the_soonest(name):
    views = [
        ReplicaView(decode_seconds=0.05),
        ReplicaView(decode_seconds=0.02, waiting_seconds=9, first_token_seconds=9),
    ]
    assert make_router(name).choose(PROMPT, views, DECODE) == 1


@pytest.mark.parametrize("name", ROUTERS)
def test_a_full_one_is_never_waited_for_while_another_can(name):
    router = make_router(name)
    full = [ReplicaView(full=True, cached_tokens=64) for _ in range(2)]
    assert {router.choose(PROMPT, [*full, ReplicaView(first_token_seconds=9.0)], PREFILL) for _ in range(3)} == {2}
    assert router.choose(PROMPT, full, PREFILL) in (0, 1)


@pytest.mark.parametrize("name", ROUTERS)
def test_roles_are_kept_to_while_one_of_the_right_role_is_there(name):
    router = make_router(name)
    replicas = [ReplicaView(role=role) for role in (Role.DECODE, Role.PREFILL, Role.PREFILL, Role.DECODE)]
    assert {router.choose(PROMPT, replicas, PREFILL) for _ in range(4)} <= {1, 2}
    assert {router.choose(PROMPT, replicas, DECODE) for _ in range(4)} <= {0, 3}
    assert router.choose(PROMPT, replicas[:1], PREFILL) == 0, "each can do both"
    views = [ReplicaView(role=Role.DECODE), ReplicaView(role=Role.MIXED)]
    assert router.choose(PROMPT, views, PREFILL) == 1
    full = [ReplicaView(role=Role.PREFILL, full=True), ReplicaView(role=Role.DECODE)]
    assert router.choose(PROMPT, full, PREFILL) == 0


@pytest.mark.parametrize("name", ROUTERS)
def test_what_is_not_available_gets_nothing(name):
    router = make_router(name)
    gone, there = ReplicaView(available=False), ReplicaView(open=9, full=True)
    assert [router.choose(PROMPT, [gone, there, gone], PREFILL) for _ in range(3)] == [1, 1, 1]
    with pytest.raises(ValueError, match="none of 2 replicas is available"):
        router.choose(PROMPT, [gone, gone], PREFILL)


def test_the_old_name_of_a_policy_works_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        assert isinstance(make_router("least-loaded"), LeastWork)
    assert "least-loaded is called least-work now" in caplog.text
