"""The books of a slab, by random walks over real memory: engines that reserve, commit, read, end and are killed; keepers that die.

The bytes of a content are its number; what is in flight is written byte by byte, whoever holds the slot by then.
"""

import mmap
from dataclasses import replace
from random import Random

import pytest

from engine.keeper.books import SlabBooks
from engine.keeper.messages import KNOWN, NOT_THERE
from engine.keeper.records import Geometry, Owner, Records
from engine.kv_store.disk.record import checksum
from scheduler.kv.eviction import eviction_of
from scheduler.types.block_hash import BlockKey
from tests.drawn import drawn

GEOMETRY = Geometry("model", slots=6, block_bytes=8, ids=2)


def block_key(number):
    return BlockKey(number.to_bytes(16, "big"), (number, number))


def content(number):
    return number.to_bytes(8, "big")


class Engine:
    """What one engine has in hand: leases, with the slots that it was given."""

    def __init__(self, owner):
        self.owner = owner
        self.writes = []  # lease, slots
        self.reads = []


class Walk:
    def __init__(self, seed):
        self.rng = Random(seed)
        self.memory = mmap.mmap(-1, GEOMETRY.size)
        self.ended = set()  # processes
        self.pids = iter(range(100, 10000))
        self.policy = self.rng.choice(["lru", "predicted"])
        self.told = {}
        self.records, self.books = None, None
        self.start()
        self.engines = [self.engine() for _ in range(3)]

    def start(self):
        """A keeper over what is in the memory."""
        self.records = Records(self.memory, GEOMETRY)
        self.told.clear()
        self.books = SlabBooks(
            self.records, eviction_of(self.policy, GEOMETRY.slots), self.tell, alive=lambda pid: pid not in self.ended
        )
        self.told |= {each.hash: each for each, _ in self.books.contents()}

    def tell(self, block_key, size, owner):
        if size:
            self.told[block_key.hash] = block_key
        else:
            self.told.pop(block_key.hash, None)

    def engine(self):
        return Engine(Owner(next(self.pids), 1))

    # what happens

    def reserve(self, engine):
        asked = [block_key(self.rng.randrange(12)) for _ in range(self.rng.randint(1, 4))]
        lease, slots = self.books.reserve(engine.owner, asked)
        for asked_key, slot in zip(asked, slots, strict=True):
            assert slot != KNOWN or self.books.finds(asked_key)
            assert slot != NOT_THERE or not self.books.finds(asked_key)
        given = [slot for slot in slots if slot >= 0]
        assert len(given) == len(set(given)) == len(lease.block_keys)
        engine.writes.append((lease, given, self.books))

    def write(self, engine):
        """Some bytes, whether the keeper that gave the slots is still there or not."""
        for lease, slots, _ in engine.writes:
            for each, slot in zip(lease.block_keys, slots, strict=True):
                self.records.row(slot)[:] = content(each.token_ids[0])

    def commit(self, engine):
        if engine.writes:
            self.write(engine)
            lease, _, books = engine.writes.pop(0)
            if books is self.books:
                failed = self.rng.random() < 0.2
                sums = [None if failed else checksum(content(each.token_ids[0])) for each in lease.block_keys]
                books.commit(lease, sums)

    def lend(self, engine):
        asked = [block_key(self.rng.randrange(12)) for _ in range(self.rng.randint(1, 4))]
        lease, slots = self.books.lend(engine.owner, asked)
        assert [slot >= 0 for slot in slots] == [self.books.finds(each) for each in asked]
        engine.reads.append((lease, dict(zip(asked, slots, strict=True)), self.books))

    def release(self, engine):
        if engine.reads:
            lease, _, books = engine.reads.pop(0)
            if books is self.books:
                books.give_back(lease)

    def drop(self, engine):
        self.books.drop([block_key(self.rng.randrange(12)).hash])

    def connection_ends(self, engine):
        """Of an engine that lives: its copies may be under way until it says hello again."""
        for lease, _, books in engine.writes + engine.reads:
            if books is self.books:
                books.end(lease)
        engine.reads.clear()
        engine.writes = [(lease, slots, None) for lease, slots, _ in engine.writes]
        if self.rng.random() < 0.5:
            engine.writes.clear()
            self.books.settled(engine.owner)

    def engine_is_killed(self, engine):
        self.ended.add(engine.owner.pid)
        for lease, _, books in engine.writes + engine.reads:
            if books is self.books:
                books.end(lease)
        self.engines[self.engines.index(engine)] = self.engine()

    def keeper_is_killed(self, engine):
        before = {each for each, _ in self.books.contents()}
        self.start()
        assert {each for each, _ in self.books.contents()} == before and not self.books.damaged
        for each in self.engines:
            each.reads.clear()

    def step(self):
        act = self.rng.choice(
            [self.reserve, self.reserve, self.write, self.commit, self.commit, self.lend, self.release, self.release]
            * 2 + [self.drop, self.connection_ends, self.engine_is_killed, self.keeper_is_killed]
        )  # fmt: skip
        act(self.rng.choice(self.engines))
        self.check()

    def check(self):
        self.books.check_integrity()
        contents = {each for each, _ in self.books.contents()}
        assert contents == set(self.told.values()), "who follows knows what is there"
        for engine in self.engines:
            self.write(engine)
            for _, slots, books in engine.reads:
                if books is self.books:
                    assert all(self.holds(each, slot) for each, slot in slots.items() if slot >= 0)
        for each in contents:
            lease, (slot,) = self.books.lend(Owner(1, 1), [each])
            assert self.holds(each, slot), "nobody writes where a content is"
            self.books.give_back(lease)

    def holds(self, block_key, slot):
        return self.records.row(slot) == content(block_key.token_ids[0])

    def end(self):
        """Nothing stays leased for ever."""
        for engine in list(self.engines):
            self.engine_is_killed(engine)
        lease, slots = self.books.reserve(Owner(1, 1), [block_key(number) for number in range(20, 26)])
        assert min(slots) >= 0
        self.books.commit(lease, [None] * 6)
        self.books.check_integrity()


@pytest.mark.parametrize("seed", range(drawn(60)))
def test_walk(seed):
    walk = Walk(seed)
    for _ in range(80):
        walk.step()
    walk.end()


@pytest.fixture
def walk():
    return Walk(0)


def test_a_slot_whose_bytes_have_changed_is_dropped_by_the_next_keeper(walk):
    engine = walk.engines[0]
    fill(walk, 1, 2, 3)
    kept = walk.books.contents()
    _, (slot,) = walk.books.lend(engine.owner, [kept[0][0]])
    walk.records.row(slot)[3] ^= 1
    walk.start()
    assert walk.books.contents() == kept[1:] and walk.books.damaged == 1
    walk.books.check_integrity()


def fill(walk, *numbers):
    """These contents, whole."""
    lease, slots = walk.books.reserve(Owner(1, 1), [block_key(number) for number in numbers])
    for number, slot in zip(numbers, slots, strict=True):
        walk.records.row(slot)[:] = content(number)
    walk.books.commit(lease, [checksum(content(number)) for number in numbers])


def test_what_was_used_last_is_still_so_for_the_next_keeper(walk):
    for number in range(6):
        fill(walk, number)
    for number in (3, 0, 5):
        walk.books.give_back(walk.books.lend(Owner(1, 1), [block_key(number)])[0])
    before = walk.books.contents()
    assert [each.token_ids[0] for each, _ in before] == [1, 2, 4, 3, 0, 5]
    walk.start()
    assert walk.books.contents() == before


def test_memory_of_another_model_is_cleared(walk):
    fill(walk, 1, 2)
    other = replace(GEOMETRY, fingerprint="other")
    books = SlabBooks(Records(walk.memory, other), eviction_of("lru", 6), walk.tell)
    assert len(books) == books.damaged == 0
    books.check_integrity()
