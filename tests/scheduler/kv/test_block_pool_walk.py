"""The block pool by itself: random owners, contents, pins and policies, with every book checked after every step; and its runs."""

import random
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler.kv.block_pool import BlockPool, OutOfBlocks
from scheduler.kv.eviction import eviction_of
from scheduler.kv.free_blocks import FreeBlocks
from scheduler.kv.free_extents import FreeExtents
from tests.drawn import drawn


def key(number):
    return number.to_bytes(16, "little")


class PoolWalk(RuleBasedStateMachine):
    """What a scheduler may do with a pool. A block stands for one token, its content for a number."""

    @initialize(
        blocks=st.integers(4, 80),
        name=st.sampled_from(["lru", "predicted"]),
        choice=st.sampled_from([0.0, 0.125, 0.5]),
        caching=st.booleans(),
    )
    def start(self, blocks, name, choice, caching):
        self.pool = BlockPool(blocks, 1, caching=caching, eviction=eviction_of(name, blocks), choice=choice)
        self.tables: list[list[int]] = []
        self.wanted: list[list[int]] = []
        self.holds: dict[int, int] = {}  # by block: the content last written there
        self.serial = 1000
        self.now = 0.0

    def publish(self, table, contents, begin):
        for block, content in list(zip(table, contents, strict=True))[begin:]:
            self.holds[block] = content
            self.pool.publish(block, key(content), [content])

    @rule(conversation=st.integers(0, 6), length=st.integers(1, 20))
    def request(self, conversation, length):
        contents = [conversation * 100 + place for place in range(length)]
        keys = [key(content) for content in contents]
        hits = self.pool.match(keys, contents)
        assert [self.holds[block] for block in hits] == contents[: len(hits)], "what is found was never overwritten"
        idle = sum(not self.pool.in_use(block) for block in hits)
        if length - len(hits) > self.pool.available - idle:
            return
        self.pool.eviction.on_lookup(keys, len(hits))
        self.pool.share(hits)
        table = hits + self.pool.allocate(length - len(hits), hits[-1] if hits else None)
        self.publish(table, contents, len(hits))
        self.tables.append(table)
        self.wanted.append(contents)

    @precondition(lambda self: self.tables)
    @rule(which=st.integers(0, 9), full=st.booleans())
    def grow(self, which, full):
        table, contents = self.tables[which % len(self.tables)], self.wanted[which % len(self.tables)]
        if not self.pool.available:
            with pytest.raises(OutOfBlocks):
                self.pool.allocate(1, table[-1])
            return
        table += self.pool.allocate(1, table[-1])
        self.serial += 1
        contents.append(self.serial)
        self.holds.pop(table[-1], None)
        if full:
            self.publish(table, contents, len(table) - 1)

    @precondition(lambda self: self.tables)
    @rule(which=st.integers(0, 9))
    def release(self, which):
        place = which % len(self.tables)
        self.pool.release(self.tables.pop(place))
        self.wanted.pop(place)

    @precondition(lambda self: self.tables)
    @rule(which=st.integers(0, 9))
    def forget(self, which):
        self.pool.forget(self.tables[which % len(self.tables)])

    @rule()
    def a_step_fails(self):
        while self.tables:
            self.pool.release(self.tables.pop())
        self.wanted.clear()
        self.pool.drop_contents()
        assert self.pool.cached == 0

    @rule(conversation=st.integers(0, 6), length=st.integers(1, 8), seconds=st.floats(0, 5))
    def pin(self, conversation, length, seconds):
        self.pool.pin([key(conversation * 100 + place) for place in range(length)], self.now + seconds)

    @rule(seconds=st.floats(0, 5))
    def time_passes(self, seconds):
        self.now += seconds
        self.pool.eviction.expire(self.now)

    @invariant()
    def books_agree(self):
        if hasattr(self, "pool"):
            self.pool.check_integrity(self.tables)
            used = len({block for table in self.tables for block in table})
            assert self.pool.used == used
            assert self.pool.free + self.pool.cached == self.pool.available == self.pool.blocks - used


PoolWalk.TestCase.settings = settings(
    max_examples=drawn(100), stateful_step_count=40, suppress_health_check=list(HealthCheck)
)
TestPoolWalk = PoolWalk.TestCase


@pytest.mark.parametrize("seed", range(5))
def test_free_extents_are_the_set_they_stand_for(seed):
    rng, limit = random.Random(seed), 60
    runs, model = FreeExtents(limit), set(range(limit))
    runs.add(0, limit)
    for _ in range(400):
        if model and rng.random() < 0.5:
            wanted = rng.randint(1, 12)
            begin = runs.find(wanted)
            end = min(runs.end_of(begin), begin + wanted)
            maximal = [n for n in model if n - 1 not in model]
            longest = max(next(e for e in range(n, limit + 1) if e not in model) - n for n in maximal)
            assert begin in maximal
            assert end - begin >= min(wanted, (longest + 1) // 2), "it fits, or is nearly the longest"
            runs.take(begin, end)
            model -= set(range(begin, end))
        else:
            back = [n for n in range(limit) if n not in model and rng.random() < 0.3]
            runs.add_all(rng.sample(back, len(back)))
            model |= set(back)
        assert list(runs) == sorted(model) and len(runs) == len(model)
        assert all((n in runs) == (n in model) for n in range(limit))
    with pytest.raises(KeyError):
        runs.take(limit - 1, limit + 1)


def test_two_growing_tables_keep_out_of_each_others_way():
    free = FreeBlocks(160)
    free.add(range(160))
    one, other = free.take(5), free.take(5)
    for _ in range(5):
        one += free.take(1, one[-1])
        other += free.take(1, other[-1])
    assert one == list(range(10)) and other == list(range(13, 23)), "a tail of eight, until it is used up"
    assert len(free.take(140)) == 140, "reserved tails are given up before anybody waits"


def test_what_is_given_up_is_found_until_it_is_taken():
    pool = BlockPool(64, 1, choice=0.25)
    table = pool.allocate(64)
    for place, block in enumerate(table):
        pool.publish(block, key(place), [place])
    pool.release(table)
    pool.allocate(2)
    assert pool.evictions == 2 and pool.free == 0 and pool.cached == 62
    keys = [key(place) for place in range(62)]
    assert sum(map(pool.resident, (key(place) for place in range(64)))) == 62, "all but what was taken"
    hits = pool.match(keys, list(range(62)))
    assert len(hits) > 64 * 3 // 4 - 12, "the policy still has as many, and behind them lie those given up"
    pool.share(hits)
    pool.check_integrity([[block for block in range(64) if pool.in_use(block) and block not in hits], hits])


def test_a_pin_reaches_what_was_given_up_already():
    pool = BlockPool(32, 1, choice=0.5)
    table = pool.allocate(32)
    for place, block in enumerate(table):
        pool.publish(block, key(place), [place])
    pool.release(table)
    pool.release(pool.allocate(1))  # half of the others are lazily evicted now, the last of the table first
    tail = [key(place) for place in range(20, 26)]
    assert pool.pin(tail, until=5.0) == 6
    pool.allocate(26)
    assert all(pool.resident(each) for each in tail)
    pool.allocate(6)
    assert not any(pool.resident(each) for each in tail), "in need, pins give way"


def runs(table):
    return 1 + sum(after != before + 1 for before, after in pairwise(table))


def chat_mix(pool, steps, seed=0, running=24):
    """Chats on a full pool: prompts of some 15 blocks, 8 more by growth in turn, 2 in 5 the next turn of an earlier chat.

    Returns (blocks, runs) of the tables of the last two thirds, as a copy of each sees them.
    """
    rng, serial, active, earlier = random.Random(seed), 0, [], []
    blocks = copies = 0
    for step in range(steps):
        while len(active) < running:
            contents = list(rng.choice(earlier[-40:])) if earlier and rng.random() < 0.4 else []
            fresh, grows = int(rng.lognormvariate(2.6, 0.8)) + 1, int(rng.lognormvariate(2.0, 0.8)) + 1
            contents = (contents if len(contents) < 80 else []) + list(range(serial, serial + fresh))
            serial += fresh
            keys = [key(content) for content in contents]
            hits = pool.match(keys, contents)
            pool.share(hits)
            table = hits + pool.allocate(len(keys) - len(hits), hits[-1] if hits else None)
            for place in range(len(hits), len(keys)):
                pool.publish(table[place], keys[place], contents[place : place + 1])
            active.append((table, contents, len(table) + grows))
        for each in [one for one in active if rng.random() < 0.3]:
            table, contents, end = each
            if len(table) < end:
                table += pool.allocate(1, table[-1])
                contents.append(serial)
                pool.publish(table[-1], key(serial), [serial])
                serial += 1
                continue
            if step > steps // 3:
                blocks, copies = blocks + len(table), copies + runs(table)
            pool.release(table)
            active.remove(each)
            earlier.append(contents)
    pool.check_integrity([table for table, _, _ in active])
    return blocks, copies


def test_tables_lie_in_long_runs_however_long_the_pool_has_been_in_use():
    blocks, copies = chat_mix(BlockPool(4096, 1, choice=0.125), 1500)
    assert blocks / copies >= 8
    scattered, pieces = chat_mix(BlockPool(4096, 1), 1500)
    assert scattered / pieces < 4, "else this shows nothing"
