"""Policies against plain models, pins with a clock that is told, and the bound of predictions that are wrong on purpose."""

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler.kv.eviction import Eviction, Lru, eviction_of
from scheduler.kv.predicted_eviction import Predicted
from scheduler.kv.reuse_stats import ReuseStats
from tests.drawn import drawn


def key(number):
    return number.to_bytes(16, "little")


def keys(*numbers):
    return [key(number) for number in numbers]


class EvictionWalk(RuleBasedStateMachine):
    """A store that keeps what is in use, and asks its policy for victims; the model knows who is there and who is pinned."""

    @initialize(name=st.sampled_from(["lru", "predicted"]), capacity=st.integers(4, 24))
    def start(self, name, capacity):
        self.policy = eviction_of(name, capacity)
        self.lru = name == "lru"
        self.capacity = capacity
        self.unused: list[bytes] = []  # in the order of use, tails first
        self.used: dict[int, list[bytes]] = {}
        self.pins: dict[bytes, float] = {}
        self.now = 0.0
        self.count = 0

    def chain(self, conversation, length):
        return [key(conversation * 100 + place) for place in range(length)]

    @rule(conversation=st.integers(0, 5), length=st.integers(1, 6))
    def request(self, conversation, length):
        """Finds its prefix, takes it into use, evicts for the rest."""
        wanted = self.chain(conversation, length)
        if any(each in chain for chain in self.used.values() for each in wanted):
            return
        hits = next((i for i, each in enumerate(wanted) if each not in self.unused), length)
        self.policy.on_lookup(wanted, hits)
        here = [each for each in wanted if each in self.unused]
        self.policy.remove(*here)
        self.unused = [each for each in self.unused if each not in here]
        while self.unused and len(self.unused) + sum(map(len, self.used.values())) + length > self.capacity:
            self.evict()
        self.used[self.count] = wanted
        self.count += 1

    @precondition(lambda self: self.used)
    @rule(which=st.integers(0, 9), answer=st.integers(0, 2))
    def release(self, which, answer):
        number = list(self.used)[which % len(self.used)]
        chain = self.used.pop(number)
        chain = chain + [key(10_000 + number * 10 + place) for place in range(answer)]
        self.policy.add(*chain)
        self.unused += reversed(chain)

    @precondition(lambda self: self.unused)
    @rule()
    def evict(self):
        victim = self.policy.victim()
        open_to = [each for each in self.unused if each not in self.pins]
        assert victim in (open_to or self.unused), "what is pinned goes last"
        if self.lru:
            assert victim == (open_to or self.unused)[0]
        self.unused.remove(victim)

    @rule(conversation=st.integers(0, 5), length=st.integers(1, 6), seconds=st.floats(0.5, 5))
    def pin(self, conversation, length, seconds):
        chain, until = self.chain(conversation, length), self.now + seconds
        pinned = self.policy.pin(chain, until)
        assert pinned == length or self.policy.pinned == self.policy.pinned_limit
        for each in chain[:pinned]:
            self.pins[each] = max(until, self.pins.get(each, 0.0))

    @rule(seconds=st.floats(0, 4))
    def time_passes(self, seconds):
        self.now += seconds
        self.policy.expire(self.now)
        over = [each for each, until in self.pins.items() if until <= self.now]
        for each in over:
            del self.pins[each]
        freed = [each for each in self.unused if each in over]
        self.unused = [each for each in self.unused if each not in over]
        # As if used just now, in an order that the model leaves to the policy.
        self.unused += [each for each in self.policy if each in freed] if self.lru else freed

    @rule(conversation=st.integers(0, 5), length=st.integers(1, 6))
    def unpin(self, conversation, length):
        chain = [each for each in self.chain(conversation, length) if each in self.pins]
        self.policy.unpin(chain)
        for each in chain:
            del self.pins[each]
        freed = [each for each in reversed(chain) if each in self.unused]
        self.unused = [each for each in self.unused if each not in freed] + freed

    @rule()
    def all_gone(self):
        self.policy.clear()
        self.unused.clear()

    @invariant()
    def books_agree(self):
        if not hasattr(self, "policy"):
            return
        self.policy.check_integrity()
        assert sorted(self.policy) == sorted(self.unused) and len(self.policy) == len(self.unused)
        assert self.policy.pinned == len(self.pins) <= self.policy.pinned_limit
        assert all(each in self.policy for each in self.unused)
        if self.lru:
            pinned = [each for each in self.unused if each in self.pins]
            assert list(self.policy)[: len(self.unused) - len(pinned)] == [e for e in self.unused if e not in self.pins]


EvictionWalk.TestCase.settings = settings(
    max_examples=drawn(120), stateful_step_count=40, suppress_health_check=list(HealthCheck)
)
TestEvictionWalk = EvictionWalk.TestCase


class TestPins:
    def test_they_end_by_themselves_head_last(self):
        policy = Eviction(Lru(), 100)
        policy.add(*keys(1, 2, 3))
        assert policy.pin(keys(1, 2, 3), until=10.0) == 3
        policy.add(*keys(7))
        policy.expire(9.9)
        assert list(policy) == keys(7, 3, 2, 1), "pinned last, tails first"
        policy.expire(10.0)
        assert policy.pinned == 0
        assert [policy.victim() for _ in range(4)] == keys(7, 3, 2, 1), "as if used when the pins ended"

    def test_a_later_end_replaces_an_earlier_one_and_never_the_other_way(self):
        policy = Eviction(Lru(), 100)
        policy.pin(keys(1), until=10.0)
        policy.pin(keys(1), until=20.0)
        policy.pin(keys(1), until=5.0)
        policy.expire(15.0)
        assert policy.pinned == 1
        policy.expire(20.0)
        assert policy.pinned == 0

    def test_no_more_than_their_share_heads_first(self):
        policy = Eviction(Lru(), 8, pinned_share=0.25)
        assert policy.pin(keys(1, 2, 3), until=1.0) == 2
        assert policy.pin(keys(9), until=1.0) == 0
        policy.add(*keys(1, 2, 3))
        assert policy.victim() == key(3)

    def test_they_hold_for_what_is_yet_to_come_and_until_nothing_else_is_left(self):
        policy = Eviction(Lru(), 8)
        policy.pin(keys(1), until=1.0)
        policy.add(*keys(1))
        policy.add(*keys(2))
        assert [policy.victim(), policy.victim()] == keys(2, 1)
        with pytest.raises(KeyError):
            policy.victim()
        policy.add(*keys(1, 3))
        assert policy.victim() == key(3), "the pin outlived the content"

    def test_a_conversation_pinned_with_every_turn_leaves_no_growing_heap(self):
        policy = Eviction(Lru(), 16)
        for turn in range(1000):
            policy.pin(keys(1, 2), until=float(turn))
        assert len(policy._ends) <= 2 * policy.pinned_limit + 2
        policy.check_integrity()


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="must be lru or predicted, got 'fifo'"):
        eviction_of("fifo", 8)


def serve(policy, chains, capacity):
    """Requests one after the other over a store of whole chains; returns the misses."""
    here, misses = set(), 0
    for chain in chains:
        hits = next((i for i, each in enumerate(chain) if each not in here), len(chain))
        policy.on_lookup(chain, hits)
        misses += len(chain) - hits
        found = [each for each in chain if each in here]
        policy.remove(*found)
        here.difference_update(found)
        while len(here) + len(chain) > capacity:
            here.discard(policy.victim())
        policy.add(*chain)
        here.update(chain)
    return misses


class TestPredicted:
    def chats_among_single_questions(self, rng, requests):
        """Chats come back for their next turn after some while; four in five requests never do."""
        chats, number = [], 1
        for _ in range(requests):
            if rng.random() < 0.2:
                if len(chats) < 12:
                    chats.append([])
                chat = chats[rng.randrange(len(chats))]
                chat += [key(number + place) for place in range(2)]
                number += 2
                yield list(chat)
                if len(chat) > 12:
                    chats.remove(chat)
            else:
                yield [key(number + place) for place in range(6)]
                number += 6

    def test_learns_who_comes_back(self):
        chains = list(self.chats_among_single_questions(random.Random(0), 2500))
        capacity, asked = 120, sum(map(len, chains))
        hits = {name: asked - serve(eviction_of(name, capacity), chains, capacity) for name in ("lru", "predicted")}
        assert hits["predicted"] > 1.5 * hits["lru"]

    @staticmethod
    def traps(capacity):
        """What returns least recently used serves well: a loop that just fits, then a scan, then the loop again; and so on."""
        loop = [[key(number * 4 + place) for place in range(4)] for number in range(capacity // 5)]
        fresh = 1_000_000
        for _ in range(12):
            for _ in range(6):
                yield from loop
            for _ in range(capacity // 2):
                yield [key(fresh + place) for place in range(4)]
                fresh += 4

    class _Liar(ReuseStats):
        """Says the opposite of what was learned, and more so the more there is to say."""

        def worth(self, group):
            return -super().worth(group) - group.waiting + group.born

    class _Faithless(Predicted):
        """Without the bound: what it is there for."""

        def _compare(self, keys, hits):
            super()._compare(keys, hits)
            self.trusting = True

    @pytest.mark.parametrize("lie", ["opposite", "newest first"])
    def test_wrong_predictions_cost_no_more_than_the_bound(self, lie):
        capacity = 200

        def of(policy_class):
            policy = policy_class(capacity)
            policy.reuse = self._Liar(capacity)
            if lie == "newest first":
                policy.reuse.worth = lambda group: -group.born
            return policy

        chains = list(self.traps(capacity))
        lru = serve(Lru(), chains, capacity)
        bounded = of(Predicted)
        assert serve(bounded, chains, capacity) == bounded.misses, "it counts what the store saw"
        assert bounded.lru_misses == lru, "the list is what least recently used would have kept"
        bound = lru * (1 + 1 / 64) + capacity * (1 + 1 / 8)
        assert bounded.misses <= bound
        if lie == "newest first":
            assert serve(of(self._Faithless), chains, capacity) > 1.3 * bound, "else this shows nothing"

    @pytest.mark.parametrize("seed", range(4))
    def test_a_scan_and_a_loop_larger_than_the_store_are_no_worse_than_least_recently_used(self, seed):
        rng, capacity = random.Random(seed), 100
        scan = [[key(5000 + 4 * n + place) for place in range(4)] for n in range(600)]
        loop = [[key(4 * (n % 40) + place) for place in range(4)] for n in range(600)]
        chains = scan + loop + [rng.choice(loop) for _ in range(600)]
        lru = serve(Lru(), chains, capacity)
        assert serve(Predicted(capacity), chains, capacity) <= lru * (1 + 1 / 64) + capacity * (1 + 1 / 8)

    def test_memory_is_bounded_however_much_is_asked_for(self):
        policy = Predicted(10)
        for number in range(2000):
            policy.on_lookup(keys(3 * number, 3 * number + 1), 0)
            policy.add(*keys(3 * number, 3 * number + 1, 3 * number + 2))
            while len(policy) > 10:
                policy.victim()
        policy.check_integrity()
        assert sum(map(len, policy.reuse._ageing)) < 400, "groups that wait for nothing are let go"


def test_returns_are_worth_more_the_sooner_and_the_likelier_they_are():
    reuse = ReuseStats(1000)
    for _ in range(200):
        for kind, asked_again in (("soon", 9), ("late", 9), ("seldom", 1)):
            group = reuse.group(kind)
            reuse.on_join(group, 10)
            reuse.advance(10 if kind == "soon" else 700)
            reuse.on_reuse(group, asked_again)
    fresh = {kind: reuse.worth(reuse.group(kind)) for kind in ("soon", "late", "seldom", "unheard of")}
    assert fresh["soon"] > fresh["late"] > fresh["seldom"] > 0
    assert fresh["seldom"] < fresh["unheard of"] < fresh["soon"]


def test_what_is_known_behind_something_that_is_not_is_counted_once():
    """A tier may be given a content whose prefix nobody has asked for yet; then somebody asks for both."""
    order = Predicted(4)
    order.add(b"end")
    for keys in ([b"begin", b"end"], [b"another", b"end"]):
        order.on_lookup(keys, 0)
        order.check_integrity()


def test_what_precedes_an_answer_may_be_forgotten_while_the_answer_is_noted():
    order = Predicted(1)
    first, *others = keys(*range(order._remembers))
    for asked in (first, *others):  # as many as are remembered; the first is the next to be forgotten
        order.on_lookup([asked], 0)
    order.add(first, *keys(1000, 1001))
    assert {order.victim() for _ in range(3)} == {first, *keys(1000, 1001)}
