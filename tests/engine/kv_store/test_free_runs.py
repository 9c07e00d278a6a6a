"""Free slots come in runs: the fewest pieces, nothing lost, nothing handed out twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.kv_store.free_runs import FreeRuns

COUNT = 24


def runs_of(slots):
    """(length, first) of the runs of neighbours in a set of slots."""
    starts = [slot for slot in slots if slot - 1 not in slots]
    return sorted((next(n for n in range(1, COUNT + 1) if start + n not in slots), start) for start in starts)


class Slots(RuleBasedStateMachine):
    """Against a set, with the runs found by looking."""

    def __init__(self):
        super().__init__()
        self.books = FreeRuns(COUNT)
        self.free = set(range(COUNT))

    @rule(count=st.integers(0, COUNT + 2))
    def take(self, count):
        runs = runs_of(self.free)
        taken = self.books.take(count)
        assert (
            len(taken) == min(count, len(self.free)) and len(set(taken)) == len(taken) and self.free.issuperset(taken)
        )
        fitting = [run for run in runs if run[0] >= count]
        if count and fitting:
            _, start = fitting[0]
            assert taken == list(range(start, start + count)), "the shortest run that is long enough, from its start"
        elif count:
            longest = sorted((length for length, _ in runs), reverse=True)
            fewest = next((n for n in range(len(runs) + 1) if sum(longest[:n]) >= len(taken)), 0)
            pieces = sum(1 for a, b in zip([-2, *taken], taken, strict=False) if b != a + 1)
            assert pieces <= fewest
        self.free -= set(taken)

    @precondition(lambda self: len(self.free) < COUNT)
    @rule(data=st.data())
    def give(self, data):
        used = sorted(set(range(COUNT)) - self.free)
        back = data.draw(st.lists(st.sampled_from(used), unique=True))
        self.books.give(back)
        self.free |= set(back)

    @invariant()
    def books_are_right(self):
        self.books.check()
        assert set(self.books.free()) == self.free and len(self.books) == len(self.free)


TestSlots = Slots.TestCase


@given(st.permutations(range(12)))
def test_what_is_given_back_in_any_order_is_one_run_again(order):
    books = FreeRuns(12)
    assert books.take(12) == list(range(12))
    for slot in order:
        books.give([slot])
    assert books.take(12) == list(range(12))


def test_a_slot_given_back_twice_is_found():
    books = FreeRuns(4)
    books.take(2)
    books.give([0])
    books.give([0])
    with pytest.raises(AssertionError):
        books.check()
