"""The books of the disk's slots, against a dictionary: nothing is lost, nothing has two owners, bytes add up."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.kv_store.disk.slots import Place, Slots
from tests.drawn import drawn


class SlotsMachine(RuleBasedStateMachine):
    """`held` and `empty` are what must be in use and free; retired slots never come back."""

    @initialize(per_segment=st.integers(1, 4), found=st.sets(st.integers(0, 9), max_size=6))
    def open(self, per_segment, found):
        self.per_segment = per_segment
        self.slots = Slots(per_segment)
        self.held, self.empty, self.retired = {}, {}, set()
        if found:  # an earlier process's files have all slots up to the last one
            for number in range(max(found) + 1):
                place = Place(*divmod(number, per_segment))
                self.slots.add(place, 100 + number)
                self.held[place] = 100 + number
                if number not in found:
                    self.free_place(place)

    def free_place(self, place):
        self.slots.free(place)
        self.empty[place] = self.held.pop(place)

    @rule(size=st.integers(1, 300))
    def take(self, size):
        place, left = self.slots.take(size)
        assert place not in self.held and place not in self.retired
        assert 0 <= place.slot < self.per_segment
        assert left == self.empty.pop(place, 0)
        self.held[place] = size

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data):
        self.free_place(data.draw(st.sampled_from(sorted(self.held))))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def retire(self, data):
        place = data.draw(st.sampled_from(sorted(self.held)))
        self.slots.retire(place)
        del self.held[place]
        self.retired.add(place)

    @rule()
    def hollow(self):
        taken = self.slots.hollow()
        if taken is None:
            assert not any(self.empty.values())
            return
        place, size = taken
        assert self.empty.pop(place) == size > 0
        assert self.slots.used[place] == 0, "nobody else may take it meanwhile"
        self.held[place] = 0
        self.free_place(place)

    @invariant()
    def agree(self):
        if not hasattr(self, "slots"):
            return
        self.slots.check()
        assert self.slots.used == self.held
        assert self.slots.taken == sum(self.held.values())
        assert self.slots.spare == sum(self.empty.values())


SlotsMachine.TestCase.settings = settings(max_examples=drawn(60), stateful_step_count=30)
TestSlots = SlotsMachine.TestCase


def test_free_slots_that_take_bytes_are_used_before_others():
    slots = Slots(8)
    kept, freed = slots.take(10)[0], slots.take(20)[0]
    slots.free(freed)
    assert slots.take(5) == (freed, 20)  # 15 of its bytes are to be given back
    assert slots.take(5) == (Place(0, 2), 0)
    assert kept == Place(0, 0)


def test_a_full_file_is_followed_by_another():
    slots = Slots(2)
    assert [slots.take(1)[0] for _ in range(5)] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda slots: slots._hollow.append(Place(0, 0)), "two states"),
        (lambda slots: slots.used.pop(Place(0, 1)), "one is lost"),
        (lambda slots: slots.used.update({Place(0, 2): 1}), "beyond its segment"),
        (lambda slots: setattr(slots, "taken", 5), "5 bytes taken"),
        (lambda slots: setattr(slots, "spare", 5), "5 bytes spare"),
    ],
)
def test_books_that_contradict_each_other_are_found(spoil, words):
    slots = Slots(4)
    for _ in range(2):
        slots.take(7)
    slots.check()
    spoil(slots)
    with pytest.raises(AssertionError, match=words):
        slots.check()
