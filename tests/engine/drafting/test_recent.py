"""Answers of late: what followed in them is guessed for others of the same scope, and for nobody else."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.drafting.lookup import PromptLookup
from engine.drafting.recent import _KEPT, _SCOPES, RecentAnswers
from scheduler.drafting import DraftCandidate
from scheduler.types.sampling_params import SamplingParams
from scheduler.worth import LONGEST_MATCH

PLAIN = SamplingParams(max_tokens=100)
tokens = st.lists(st.integers(0, 3), min_size=1, max_size=20)


def array(ids):
    return np.array(ids, dtype=np.int32)


@given(st.lists(tokens, max_size=5), tokens, st.integers(1, 6))
def test_the_longest_match_of_all_answers_is_found_and_no_answer_is_left(answers, newest, most):
    recent = RecentAnswers()
    for answer in answers:
        recent.add("a", array(answer))
    best, following = 0, []
    for answer in answers:
        for end in range(1, len(answer) + 1):
            limit = min(end, len(newest), LONGEST_MATCH)
            length = next((n for n in range(limit) if answer[end - 1 - n] != newest[-1 - n]), limit)
            if length and length >= best:
                best, following = length, answer[end : end + most]
    assert recent.look("a", array(newest), most) == (best, following)


def test_what_is_kept_is_bounded_and_the_newest_stays():
    recent = RecentAnswers()
    for i in range(10):
        recent.add("a", array(range(i * _KEPT, (i + 1) * _KEPT)))
        assert len(recent._scopes["a"]) <= 2 * _KEPT + 2
    last = 10 * _KEPT - 10
    assert recent.look("a", array([last]), 3) == (1, [last + 1, last + 2, last + 3])
    assert recent.look("a", array([5]), 3) == (0, [])
    for i in range(_SCOPES):
        recent.add(i, array([1, 2]))
    assert recent.look("a", array([last]), 3) == (0, [])
    assert recent.look(0, array([1]), 3) == (1, [2])


def test_an_answer_that_ended_is_guessed_for_its_own_scope_only():
    drafter, answer = PromptLookup(at_once=True), list(range(50, 80))

    def asked(name, ids, scope, prompt_length=2):
        (guesses,) = drafter.propose([DraftCandidate(name, ids, PLAIN, 100, prompt_length, scope)])
        return list(guesses)

    assert asked("first", [1, 2, *answer], ("anna", b"")) == []
    drafter.forget("first")
    assert asked("mine", [8, 9, 50, 51, 52, 53], ("anna", b""))[:2] == [54, 55]
    assert asked("prompt", [8, 9, 10, 1, 2], ("anna", b"")) == [], "prompts are not kept"
    assert asked("salted", [8, 9, 50, 51, 52, 53], ("anna", b"salt")) == []
    assert asked("other", [8, 9, 50, 51, 52, 53], ("otto", b"")) == []
