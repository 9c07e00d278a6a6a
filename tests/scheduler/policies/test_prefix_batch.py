"""Offline batches: prefixes one after the other, most to generate first, and everybody's turn comes."""

import random
import sys
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.kv.block_pool import BlockPool
from scheduler.kv.prefix_cache import PrefixCache
from scheduler.policies.prefix_batch import PrefixQueue
from scheduler.types.block_hash import root_hash
from scheduler.types.messages import RequestTimes
from scheduler.types.request import Request
from scheduler.types.sampling_params import SamplingParams
from tests.drawn import drawn
from tests.scheduler.sim import Engine

SIZE = 2  # tokens of a block
ROOT = root_hash("line")


def line_of(*, caching=True):
    return PrefixQueue(PrefixCache(BlockPool(8, SIZE, caching=caching)))


def request(arrival, prompt, max_tokens=4, priority=0, started=False):
    return Request(
        request_id=str(arrival),
        prompt_ids=list(prompt),
        sampling=SamplingParams(max_tokens=max_tokens),
        priority=priority,
        arrival=arrival,
        root=ROOT,
        times=RequestTimes(queued=0.0, scheduled=0.0),
        started=started,
    )


def fill(line, *prompts, **more):
    requests = [request(arrival, prompt, **more) for arrival, prompt in enumerate(prompts)]
    for each in requests:
        line.add(each)
    return requests


def arrivals(line):
    return [each.arrival for each in line.admission_order("", lambda _: False)]


# --- places ---


def test_a_shared_prefix_goes_together():
    line = line_of()
    fill(line, b"aaaa1", b"bbbb1", b"aaaa2", b"bbbb2", b"aaaa3", b"bbbb3")
    assert arrivals(line) == [0, 2, 4, 1, 3, 5]


def test_a_prefix_all_have_does_not_hide_those_below_it():
    line = line_of()
    fill(line, b"ssaa1", b"ssbb1", b"ssaa2", b"ssbb2", b"ss5")
    together = arrivals(line)
    assert abs(together.index(0) - together.index(2)) == abs(together.index(1) - together.index(3)) == 1


def test_most_to_generate_for_each_prompt_token_goes_first():
    line = line_of()
    for arrival, (prompt, output) in enumerate([(b"aaaaaaaa1", 9), (b"bb1", 2), (b"cccc1", 10)]):
        line.add(request(arrival, prompt, output))
    assert arrivals(line) == [2, 0, 1]


def test_a_shared_prefix_counts_once():
    """Alone each of the first two has 4 for 9 tokens; together 8 for 10, more than the 5 for 7 of the third."""
    line = line_of()
    for arrival, (prompt, output) in enumerate([(b"cccccc1", 5), (b"aaaaaaaa1", 4)]):
        line.add(request(arrival, prompt, output))
    assert arrivals(line) == [0, 1]
    line.add(request(2, b"aaaaaaaa2", 4))
    assert arrivals(line) == [1, 2, 0]


def test_without_a_cache_nothing_is_shared_and_decodes_still_decide():
    line = line_of(caching=False)
    for arrival, (prompt, output) in enumerate([(b"aaaa1", 1), (b"bbbb1", 9), (b"aaaa1", 5)]):
        line.add(request(arrival, prompt, output))
    assert arrivals(line) == [1, 2, 0]


def test_priority_goes_before_all():
    line = line_of()
    fill(line, b"aaaa1", b"aaaa2")
    line.add(request(2, b"bb1", 1, priority=-1))
    line.add(request(3, b"bb1", 99, priority=5))
    assert arrivals(line) == [2, 0, 1, 3]
    assert line.first().arrival == 2


def test_a_begun_group_is_finished_before_a_better_one():
    line = line_of()
    requests = fill(line, b"aaaa1", b"bbbb1", b"aaaa2", b"aaaa3")
    line.take(requests[0])
    line.add(request(9, b"cccc1", 99))
    assert arrivals(line) == [2, 3, 9, 1]
    line.remove(requests[2])
    line.remove(requests[3])
    line.add(request(10, b"aaaa4"))
    assert arrivals(line) == [9, 1, 10], "a group that was gone begins anew"


def test_who_ran_before_goes_first():
    line = line_of()
    requests = fill(line, b"aaaa1", b"aaaa2", b"bbbb1")
    line.take(requests[0])
    line.add(request(7, b"cccc1", started=True))
    line.add(request(6, b"cccc2", started=True))
    assert arrivals(line) == [6, 7, 1, 2]


def test_prompts_that_extend_each_other_may_nest_deeply():
    """Deeper than Python would follow."""
    line, many, limit = line_of(), 400, sys.getrecursionlimit()
    sys.setrecursionlimit(350)
    try:
        fill(line, *([1, 1] * turn + [2] for turn in range(1, many)))
        assert sorted(arrivals(line)) == list(range(many - 1))
    finally:
        sys.setrecursionlimit(limit)


def test_tokens_that_come_while_it_waits_do_not_move_it():
    """The result of a step that ran when a request was put back."""
    line = line_of()
    waits, other = fill(line, b"aaaa1", b"aaaabb1")
    waits.tokens += [5, 6, 7]
    line.remove(waits)
    assert arrivals(line) == [1] and len(line) == 1
    line.remove(other)
    assert not line and line.first() is None


# --- against a line that is made anew each time ---


class Oracle:
    """The same order from the definition: everything is counted again for every look."""

    def __init__(self):
        self.waiting = {}
        self.born = {}
        self.begun = {}
        self.taken = 0

    def keys(self, each):
        return each.block_hashes[: (len(each.prompt_ids) - 1) // SIZE] if not each.started else []

    def add(self, each):
        self.waiting[each.arrival] = each
        for key in self.keys(each):
            self.born.setdefault((each.priority, key), each.arrival)

    def leave(self, each, *, takes):
        self.taken += takes
        del self.waiting[each.arrival]
        left = {(other.priority, key) for other in self.waiting.values() for key in self.keys(other)}
        for key in self.keys(each):
            name = (each.priority, key)
            if name not in left:
                self.born.pop(name, None)
                self.begun.pop(name, None)
            elif takes:
                self.begun.setdefault(name, self.taken)

    def order(self):
        found = []
        for priority in sorted({each.priority for each in self.waiting.values()}):
            found += self.sort([each for each in self.waiting.values() if each.priority == priority], 0)
        return [each.arrival for each in found]

    def sort(self, requests, depth):
        entries, groups = [], {}
        for each in requests:
            keys = self.keys(each)
            if len(keys) > depth:
                groups.setdefault(keys[depth], []).append(each)
            else:
                ratio = each.sampling.max_tokens / (len(each.prompt_ids) - depth * SIZE)
                entries.append(((0, 0.0, each.arrival) if each.started else (1 << 62, -ratio, each.arrival), [each]))
        for key, members in groups.items():
            blocks = {other for each in members for other in self.keys(each)[depth:]}
            own = sum(len(each.prompt_ids) - len(self.keys(each)) * SIZE for each in members)
            decode = sum(each.sampling.max_tokens for each in members)
            name = (members[0].priority, key)
            place = self.begun.get(name, 1 << 62), -decode / (len(blocks) * SIZE + own), self.born[name]
            entries.append((place, self.sort(members, depth + 1)))
        return [each for _, members in sorted(entries, key=lambda entry: entry[0]) for each in members]


class LineWalk:
    """Random arrivals, starts, aborts and returns, in a line and in its oracle."""

    def __init__(self, rng):
        self.rng = rng
        self.line, self.oracle = line_of(), Oracle()
        self.away = []
        self.count = 0

    def act(self):
        what = self.rng.random()
        if what < 0.5 or not self.oracle.waiting:
            self.count += 1
            # Equal tokens fill each block, of few kinds: many share much.
            prompt = [self.rng.choice((0, 0, 1)) for _ in range(self.rng.randint(1, 9)) for _ in range(SIZE)]
            self.add(request(self.count, prompt, self.rng.randint(0, 9), self.rng.choice((0, 0, 0, 1))))
        elif what < 0.55 and self.away:
            each = self.away.pop(self.rng.randrange(len(self.away)))
            each.started = True
            self.add(each)
        else:
            # Those in front more often, as a scheduler does.
            waiting = arrivals(self.line)
            each = self.oracle.waiting[waiting[int(len(waiting) * self.rng.random() ** 2)]]
            self.leave(each, takes=what < 0.8)

    def add(self, each):
        self.line.add(each)
        self.oracle.add(each)

    def leave(self, each, *, takes):
        self.line.take(each) if takes else self.line.remove(each)
        self.oracle.leave(each, takes=takes)
        self.away += [each] if takes else []


@settings(max_examples=drawn(25))
@given(st.integers(0, 2**32))
def test_the_queue_is_what_its_definition_says(seed):
    walk = LineWalk(random.Random(seed))
    for _ in range(80):
        walk.act()
        assert arrivals(walk.line) == walk.oracle.order()
        assert len(walk.line) == len(walk.oracle.waiting)
    for each in list(walk.oracle.waiting.values()):
        walk.line.remove(each)
    assert not walk.line._classes and not walk.line._priorities and not walk.line._depths


# --- the scheduler with it ---


def batch(engine, *, groups, each, prefix, seed=0):
    """Shuffled: every prompt is a shared prefix of that many tokens and three of its own."""
    rng = random.Random(seed)
    names = [(group, member) for group in range(groups) for member in range(each)]
    rng.shuffle(names)
    for group, member in names:
        prompt = [group] * prefix + [40, member, group]
        engine.add(f"{group}.{member}", prompt, max_tokens=rng.randint(1, 6), ignore_eos=True)


def served(scheduling):
    engine = Engine(blocks=28, max_running=4, max_step_tokens=32, scheduling=scheduling, prefix_lookahead=4)
    batch(engine, groups=10, each=8, prefix=16)
    engine.drain(20_000)
    engine.check_outputs()
    assert len(engine.ends) == 80
    return engine.scheduler.snapshot()


def test_a_prefix_is_computed_once_where_the_pool_holds_few_of_them():
    """Four blocks of each of ten prefixes, in a pool of 28 for four requests of 5 to 7 blocks."""
    stats = served("throughput")
    could_be_found = 10 * 7 * 16
    assert stats.prefix_hit_tokens >= 0.95 * could_be_found
    for scheduling in ("fcfs", "priority"):
        other = served(scheduling)
        assert other.prefix_hit_tokens < 0.7 * stats.prefix_hit_tokens
        assert other.steps > stats.steps


@pytest.mark.parametrize("seed", range(6))
def test_everything_ends_with_new_requests_of_begun_groups_coming_in(seed):
    """Also one whose group is the worst of all."""
    rng = random.Random(seed)
    engine = Engine(blocks=14, max_running=3, max_step_tokens=16, scheduling="throughput")
    engine.add("worst", [49] * 30, max_tokens=1)
    for number in range(60):
        prompt = [rng.randrange(3)] * rng.choice((4, 8, 12)) + [number % 40]
        engine.add(
            f"r{number}", prompt, max_tokens=rng.randint(1, 20), ignore_eos=True, priority=rng.choice((0, 0, 0, 1))
        )
        for _ in range(rng.randrange(4)):
            engine.tick()
        if rng.random() < 0.1:
            engine.abort(f"r{rng.randrange(number + 1)}")
    engine.drain(20_000)
    engine.check_outputs()
    assert "worst" in engine.ends and len(engine.ends) == 61


def test_a_higher_class_takes_a_slot():
    engine = Engine(blocks=64, max_running=2, scheduling="throughput")
    for name in "ab":
        engine.add(name, [ord(name) % 40] * 6, max_tokens=24, ignore_eos=True)
    for _ in range(4):
        engine.tick()
    engine.add("urgent", [9] * 5, max_tokens=4, priority=-1, ignore_eos=True)
    engine.drain()
    engine.check_outputs()
    assert next(iter(engine.ends)) == "urgent"
    assert sum(end.times.preemptions for end in engine.ends.values()) == 1


def test_a_look_at_the_first_touches_few_of_many():
    """Groups are opened when their turn comes: 64 places of 3,000 requests need no more than the groups these are in."""
    line = line_of()
    opened = 0

    class Counted(dict):
        def __getitem__(self, key):
            nonlocal opened
            opened += 1
            return super().__getitem__(key)

    fill(line, *([number % 300, number % 300, 400, number % 7, number] for number in range(3000)))
    line._classes[0].groups = Counted(line._classes[0].groups)
    assert len(list(islice(line.admission_order("", lambda _: False), 64))) == 64
    assert opened <= 7
