"""Free ids come in runs: few pieces, nothing lost, nothing handed out twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.kv.free_blocks import FreeBlocks
from scheduler.kv.free_extents import FreeExtents

COUNT = 24


def extents(count):
    books = FreeExtents(count)
    books.add(0, count)
    return books


def lengths_of(ids):
    """Of the runs of neighbours in a set, the longest first."""
    begins = [each for each in ids if each - 1 not in ids]
    return sorted((next(n for n in range(1, COUNT + 1) if begin + n not in ids) for begin in begins), reverse=True)


def pieces(ids):
    return sum(after != before + 1 for before, after in zip([-2, *ids], ids, strict=False))


class Extents(RuleBasedStateMachine):
    """Against a set, with the runs found by looking."""

    def __init__(self):
        super().__init__()
        self.books = extents(COUNT)
        self.free = set(range(COUNT))

    @rule(count=st.integers(0, COUNT + 2))
    def take_any(self, count):
        lengths = lengths_of(self.free)
        taken = self.books.take_any(count)
        assert len(taken) == min(count, len(self.free)) and len(set(taken)) == len(taken)
        assert self.free.issuperset(taken)
        if count and lengths and lengths[0] >= count:
            assert pieces(taken) == 1, "one run where one is long enough"
        elif count:
            fewest = next(n for n in range(len(lengths) + 1) if sum(lengths[:n]) >= len(taken))
            assert pieces(taken) <= 2 * fewest, "runs of nearly the greatest length"
        self.free -= set(taken)

    @precondition(lambda self: len(self.free) < COUNT)
    @rule(data=st.data())
    def add(self, data):
        used = sorted(set(range(COUNT)) - self.free)
        back = data.draw(st.lists(st.sampled_from(used), unique=True))
        self.books.add_all(back)
        self.free |= set(back)

    @rule(data=st.data())
    def take_a_part_of_a_run(self, data):
        if not self.free:
            return
        begin = data.draw(st.sampled_from(sorted(self.free)))
        end = data.draw(st.integers(begin + 1, self.books.end_of(begin)))
        self.books.take(begin, end)
        self.free -= set(range(begin, end))

    @rule(begin=st.integers(0, COUNT - 1))
    def take_what_is_not_there(self, begin):
        if not set(range(begin, begin + 3)) <= self.free:
            with pytest.raises(KeyError):
                self.books.take(begin, begin + 3)

    @invariant()
    def books_are_right(self):
        self.books.check_integrity()
        assert list(self.books) == sorted(self.free) and len(self.books) == len(self.free)
        assert all((each in self.books) == (each in self.free) for each in range(COUNT))


TestExtents = Extents.TestCase


@given(st.permutations(range(12)))
def test_what_is_given_back_in_any_order_is_one_run_again(order):
    books = extents(12)
    assert books.take_any(12) == list(range(12))
    for each in order:
        books.add_all([each])
    assert books.take_any(12) == list(range(12))


def test_an_id_given_back_twice_is_found():
    books = extents(4)
    books.take_any(2)
    books.add_all([0])
    books.add_all([0])
    with pytest.raises(AssertionError):
        books.check_integrity()


def test_nothing_can_be_found_in_nothing():
    with pytest.raises(KeyError, match="nothing is free"):
        FreeExtents(4).find(1)


class Blocks(RuleBasedStateMachine):
    """Tables that grow into their reserved tails, and blocks that are taken back from them, against sets."""

    def __init__(self):
        super().__init__()
        self.books = FreeBlocks(160)
        self.books.add(range(160))
        self.tables = []

    @rule(count=st.integers(0, 30))
    def new_table(self, count):
        if count <= len(self.books):
            self.tables.append(self.books.take(count))

    @rule(which=st.integers(0, 9), count=st.integers(1, 3))
    def grow(self, which, count):
        table = self.tables[which % len(self.tables)] if self.tables else []
        if table and count <= len(self.books):
            tail = table[-1] in self.books.tail_owners
            table += self.books.take(count, table[-1])
            assert not tail or table[-count] == table[-count - 1] + 1, "the tail was kept for it"

    @rule(which=st.integers(0, 9))
    def release(self, which):
        if self.tables:
            table = self.tables.pop(which % len(self.tables))
            for block in table:
                self.books.release_tail(block)
            self.books.add(table)

    @rule(block=st.integers(0, 159))
    def use_a_free_block_by_name(self, block):
        if block in set(self.books):
            self.books.discard(block)
            self.tables.append([block])
        else:
            with pytest.raises(KeyError):
                self.books.discard(block)

    @invariant()
    def nothing_is_lost(self):
        self.books.check_integrity()
        used = [block for table in self.tables for block in table]
        assert sorted([*used, *self.books]) == list(range(160))
        assert self.books.tail_owners <= set(used)


TestBlocks = Blocks.TestCase
