"""Which jobs are split between a prefill and a decode replica."""

from dataclasses import replace

import pytest

from scheduler.router.prefix_aware import PrefixAware
from scheduler.router.role_switching import PhaseBounds
from scheduler.router.split import Placement, Split
from scheduler.router.state import ReplicaLimits, ReplicaState
from scheduler.router.view import ReplicaView, Role
from scheduler.types.messages import EngineStats
from scheduler.types.step import StepWork

TOKEN = 0.001  # seconds


def views(tokens, *, waits=(0.0, 0.0), cached=(0, 0), running=(0, 0), roles=(Role.PREFILL, Role.DECODE)):
    """What two engines look like to a request of so many tokens."""
    made = []
    for role, wait, there, busy in zip(roles, waits, cached, running, strict=True):
        view = ReplicaView(role=role, token_seconds=TOKEN, cached_tokens=there, running=busy)
        own = TOKEN * (tokens - there)
        made.append(replace(view, first_token_seconds=wait + own, waiting_seconds=wait, prompt_seconds=own))
    return made


def place(tokens, split=None, **there):
    return (split or Split(PrefixAware())).place([1] * tokens, views(tokens, **there))


def test_long_prompts_are_split_and_short_or_cached_ones_are_not():
    assert place(4000) == Placement(0, 1)
    assert place(20) == Placement(1, 1)
    assert place(4000, cached=(0, 3990)) == Placement(1, 1), "cached where it decodes"
    assert place(4000, cached=(3990, 0)) == Placement(0, 1), "cached where prompts are computed"


def test_what_waits_for_the_prefill_engine_counts_against_a_split_and_what_decodes_counts_for_it():
    assert place(1000, waits=(5.0, 0.0)) == Placement(1, 1)
    assert place(1000, waits=(5.0, 0.0), running=(0, 8)) == Placement(0, 1), "eight sequences would be held up"
    assert place(1000, waits=(9.0, 0.0), running=(0, 8)) == Placement(1, 1)


def test_where_roles_switch_decodes_keep_their_pace_unless_waiting_is_hopeless():
    bounds = PhaseBounds(ttft=4.0, tpot=0.03)

    def placed(wait, beside):
        prefill, decode = views(1000, waits=(wait, 0.0))
        return Split(PrefixAware(), bounds=bounds).place(
            [1] * 1000, [prefill, replace(decode, mixed_step_seconds=beside)]
        )

    assert placed(wait=3.5, beside=0.02) == Placement(1, 1)
    assert placed(wait=3.5, beside=0.04) == Placement(0, 1), "prefill falls behind, and will get another engine"
    assert placed(wait=7.5, beside=0.04) == Placement(1, 1)


def test_a_decode_engine_that_has_seen_no_prompts_is_assumed_to_be_as_fast_as_the_other():
    slow, guessed = views(1000)
    guessed = replace(guessed, measured=False, first_token_seconds=0.01)
    assert Split(PrefixAware()).place([1] * 1000, [slow, guessed]) == Placement(0, 1)
    assert Split(PrefixAware()).place([1] * 1000, [slow, replace(guessed, measured=True)]) == Placement(1, 1)


def test_slow_hand_overs_make_the_shortest_prompt_that_is_split_longer():
    split = Split(PrefixAware())
    assert place(200, split) == Placement(0, 1)
    for _ in range(100):
        split.handed_over(1.0)
    assert place(200, split) == Placement(1, 1)
    assert place(2000, split) == Placement(0, 1)


def test_hand_overs_that_were_slow_once_are_tried_again_but_not_for_the_sake_of_short_prompts():
    split = Split(PrefixAware())
    for _ in range(100):
        split.handed_over(30.0)
    slow = split.hand_over_seconds
    assert [place(20, split) for _ in range(1000)] == [Placement(1, 1)] * 1000
    assert split.hand_over_seconds == slow, "these would not be split anyway"
    assert place(2000, split) == Placement(1, 1)
    assert Placement(0, 1) in [place(2000, split) for _ in range(500)]
    assert split.hand_over_seconds > 1.0, "as soon as it may pay"


@pytest.mark.parametrize(
    ("roles", "index"),
    [((Role.MIXED, Role.DECODE), 0), ((Role.PREFILL, Role.PREFILL), 0), ((Role.DECODE, Role.DECODE), 0)],
)
def test_without_both_roles_nothing_is_split(roles, index):
    assert place(4000, roles=roles) == Placement(index, index)


def test_a_request_without_decodes_stays_where_its_prompt_is_computed():
    placed = Split(PrefixAware()).place([1] * 4000, views(4000), decodes=False)
    assert placed == Placement(0, 0)
    gone = [view if view.role is Role.PREFILL else replace(view, available=False) for view in views(4000)]
    assert Split(PrefixAware()).place([1] * 4000, gone) == Placement(0, 0), "nobody is there for decodes"


def test_first_steps_of_one_token_do_not_make_the_wait_for_a_prefill_engine_look_hopeless():
    """20 prompts at once, while its first steps have become slower for another reason than the keys that they read."""
    limits = ReplicaLimits(blocks=400, block_size=32, step_tokens=1, running=64)
    states, split = [ReplicaState(limits), ReplicaState(limits)], Split(PrefixAware(), bounds=PhaseBounds(600.0, 1e-6))
    lengths = [22, 53, 24, 26, 23, 144, 31, 14, 38, 45, 23, 40, 38, 52, 140, 350, 31, 54, 213, 24]
    placed = []
    for number, length in enumerate(lengths):
        roles = zip(states, (Role.PREFILL, Role.DECODE), strict=True)
        views = [state.view(length, [], float(number), role=role) for state, role in roles]
        placed.append(split.place([1] * length, views))
        states[placed[-1].index].submitted(str(number), length, 1)
        seconds = 0.05 if number < 4 else 0.2
        states[0].step_ended(StepWork(prompt_tokens=1, prompt_keys=number + 1), seconds, EngineStats(), float(number))
    assert placed == [Placement(0, 1)] * len(lengths)
    assert views[0].first_token_seconds < 0.2 * sum(lengths)
