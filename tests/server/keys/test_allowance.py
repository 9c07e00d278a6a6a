"""Buckets and counters of a key under a clock that the test moves: never more than promised, and nothing stays behind."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import RateLimited
from server.keys.allowance import LocalAllowance, duration
from server.keys.buckets import LeakyBucket
from server.keys.entry import KeyLimits

SLACK = 1e-6


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def most_in_a_window(used, limit):
    """By how much the worst window of those between two uses is over what the bucket promises for its length."""
    return max(
        (sum(amount for at, amount in used[i : j + 1]) - limit * (1 + (used[j][0] - used[i][0]) / 60))
        for i in range(len(used))
        for j in range(i, len(used))
    )


STEPS = st.lists(st.tuples(st.integers(0, 90), st.integers(1, 12)), min_size=1, max_size=40)


@given(limit=st.integers(1, 10), steps=STEPS)
def test_no_window_has_more_than_it_promises_and_who_waits_as_told_passes(limit, steps):
    bucket, now, used = LeakyBucket(limit, 0.0), 0.0, []
    for pause, amount in steps:
        now += pause / 10
        wait = bucket.wait(amount, now)
        assert math.isinf(wait) == (amount > limit)
        if math.isinf(wait):
            continue
        if wait and amount % 2:
            now += wait
            assert bucket.wait(amount, now) < SLACK, "told when it would pass"
            wait = 0.0
        if not wait:
            bucket.add(amount, now)
            used.append((now, amount))
        assert -SLACK <= bucket.used(now) <= limit + SLACK
    if used:
        assert most_in_a_window(used, limit) < SLACK


@given(limit=st.integers(1, 100), amount=st.integers(1, 100), before=st.integers(0, 100))
def test_what_is_given_back_was_never_used(limit, amount, before):
    bucket = LeakyBucket(limit, 0.0)
    bucket.add(before, 0.0)
    bucket.add(amount, 0.0)
    bucket.add(-amount, 0.0)
    assert bucket.used(0.0) == pytest.approx(before)
    bucket.add(-2 * before - 1, 0.0)
    assert bucket.used(0.0) == 0.0
    assert bucket.used(-5.0) == 0.0, "a clock that goes back changes nothing"


class Walk:
    """A key's requests at random. Each is let in, reserves, generates as it goes, and ends; as `TokenCharge` does it."""

    def __init__(self, limits):
        self.clock, self.limits = Clock(), limits
        self.allowance = LocalAllowance(limits, self.clock)
        self.open, self.begun, self.used = [], [], []

    def come(self, prompt, most):
        try:
            begun = self.allowance.begin()
        except RateLimited as error:
            assert error.limit in ("requests_per_minute", "concurrent_requests")
            assert int(error.headers["Retry-After"]) >= 1
            return
        try:
            reserved = self.allowance.reserve(prompt, most)
        except RateLimited as error:
            assert error.limit == "tokens_per_minute"
            assert ("Retry-After" in error.headers) == (prompt <= self.limits.tokens_per_minute)
            self.allowance.take_back()
            self.allowance.end(begun, served=True)
            return
        assert 0 <= reserved <= most
        self.begun.append((self.clock.now, 1))
        self.used.append((self.clock.now, prompt))
        self.open.append([begun, reserved])

    def generate(self, which, tokens):
        """No more than was reserved: what is beyond is a debt, of which another test tells."""
        if self.open:
            request = self.open[which % len(self.open)]
            tokens = min(tokens, request[1])
            self.allowance.book(tokens, tokens)
            request[1] -= tokens
            self.used.append((self.clock.now, tokens))

    def end(self, which):
        if self.open:
            begun, reserved = self.open.pop(which % len(self.open))
            self.allowance.book(0, reserved)
            self.allowance.end(begun, served=True)

    def check(self):
        limits, allowance, now = self.limits, self.allowance, self.clock.now
        assert allowance.open == len(self.open) <= limits.concurrent_requests
        assert allowance._reserved == sum(reserved for _, reserved in self.open)
        assert allowance._tokens.used(now) + allowance._reserved <= limits.tokens_per_minute + SLACK
        told = dict(allowance.headers())
        for of, limit in ((b"requests", limits.requests_per_minute), (b"tokens", limits.tokens_per_minute)):
            assert 0 <= int(told[b"x-ratelimit-remaining-" + of]) <= limit == int(told[b"x-ratelimit-limit-" + of])


MOVES = st.one_of(
    st.tuples(st.just("come"), st.integers(1, 60), st.integers(0, 80)),
    st.tuples(st.just("generate"), st.integers(0, 5), st.integers(1, 50)),
    st.tuples(st.just("end"), st.integers(0, 5)),
    st.tuples(st.just("pause"), st.integers(1, 300)),
)


@given(
    limits=st.builds(KeyLimits, st.integers(1, 8), st.integers(20, 120), st.integers(1, 4)),
    moves=st.lists(MOVES, max_size=40),
)
def test_a_key_never_has_more_than_its_limits(limits, moves):
    walk = Walk(limits)
    for name, *arguments in moves:
        if name == "pause":
            walk.clock.now += arguments[0] / 10
        else:
            getattr(walk, name)(*arguments)
        walk.check()
    for used, limit in ((walk.begun, limits.requests_per_minute), (walk.used, limits.tokens_per_minute)):
        if used:
            assert most_in_a_window(used, limit) < SLACK
    while walk.open:
        walk.end(0)
    walk.check()
    walk.clock.now += 60
    told = dict(walk.allowance.headers())
    assert told[b"x-ratelimit-remaining-tokens"] == told[b"x-ratelimit-limit-tokens"], "nothing stays behind"
    assert told[b"x-ratelimit-reset-tokens"] == b"0ms"


def test_what_is_generated_beyond_the_reservation_is_paid_back_by_waiting():
    clock = Clock()
    allowance = LocalAllowance(KeyLimits(tokens_per_minute=60), clock)
    allowance.begin()
    assert allowance.reserve(20, 10) == 10
    allowance.book(70, 10)
    with pytest.raises(
        RateLimited, match=r"`tokens_per_minute` is 60, 0 of them are left, and this request needs 10"
    ) as caught:
        allowance.reserve(10, 0)
    assert caught.value.headers == {"Retry-After": "40", "retry-after-ms": "40000"}, "90 used, 50 may stay"
    clock.now += 40
    assert allowance.reserve(10, 0) == 0


def test_what_is_reserved_does_not_leak_and_who_waits_for_it_is_told_when_others_should_end():
    clock = Clock()
    allowance = LocalAllowance(KeyLimits(tokens_per_minute=60), clock)
    first = allowance.begin()
    clock.now += 10
    allowance.end(first, served=True)  # they take some seconds
    allowance.end(allowance.begin(), served=False)  # one that was refused says nothing
    begun = allowance.begin()
    assert allowance.reserve(0, 50) == 50
    clock.now += 600
    with pytest.raises(RateLimited) as caught:
        allowance.reserve(20, 0)
    assert int(caught.value.headers["retry-after-ms"]) == round(1000 * (1.0 + 0.2 * 9))
    allowance.book(0, 50)
    allowance.end(begun, served=True)
    assert allowance.reserve(20, 40) == 40


def test_a_request_that_can_never_pass_is_told_so():
    allowance = LocalAllowance(KeyLimits(tokens_per_minute=60), Clock())
    with pytest.raises(RateLimited, match="this request alone has 61 tokens") as caught:
        allowance.reserve(61, 5)
    assert caught.value.headers == {"x-should-retry": "false"}
    assert allowance.reserve(60, 5) == 0


def test_other_limits_hold_at_once_and_keep_what_was_used():
    clock = Clock()
    allowance = LocalAllowance(KeyLimits(requests_per_minute=2), clock)
    for _ in range(2):
        allowance.begin()
    allowance.limit_to(KeyLimits(requests_per_minute=3))
    allowance.begin()
    with pytest.raises(RateLimited, match="`requests_per_minute` is 3"):
        allowance.begin()
    allowance.limit_to(KeyLimits(concurrent_requests=1))
    with pytest.raises(RateLimited, match="`concurrent_requests` is 1, and 3 are open"):
        allowance.begin()
    assert allowance.headers() == []
    allowance.limit_to(KeyLimits())
    allowance.begin()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.012, "12ms"), (0.9999, "1s"), (8.64, "8.64s"), (60, "1m0s"), (59.9999, "1m0s"), (119.5, "2m0s"),
     (360, "6m0s"), (3723, "1h2m3s")],
)  # fmt: skip
def test_durations_are_written_as_openai_writes_them(seconds, text):
    assert duration(seconds) == text
