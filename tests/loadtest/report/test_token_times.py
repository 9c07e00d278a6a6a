"""Times of single tokens read like a list of events."""

import pickle
from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.report.records import RequestRecord
from loadtest.report.token_times import TokenTimes, tokens_in

TIMES = st.lists(st.floats(0, 1e6), max_size=12)
EVENTS = st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 2**53)), max_size=12)


@given(TIMES, st.integers(-14, 14), st.integers(-14, 14))
def test_they_read_like_the_list(times, begin, end):
    events, plain = TokenTimes(times), [(at, 1) for at in times]
    assert events == plain and list(events) == plain and len(events) == len(plain)
    assert events[begin:end] == plain[begin:end] and isinstance(events[begin:end], TokenTimes)
    assert tokens_in(events) == tokens_in(plain) == len(times)
    assert deepcopy(events) == events == TokenTimes(times) and repr(times) in repr(events)
    for place in range(len(times)):
        assert events[place] == plain[place]
    with pytest.raises(IndexError):
        events[len(times)]


@given(EVENTS, st.integers(-14, 14), st.integers(-14, 14))
def test_so_do_those_of_several_tokens(plain, begin, end):
    events = TokenTimes.of(plain)
    assert TokenTimes.of(events) is events and TokenTimes.of(list(events)) == events == plain
    assert (events.counts is None) == all(count == 1 for _, count in plain)
    assert events[begin:end] == plain[begin:end] and [events[place] for place in range(len(plain))] == plain
    assert tokens_in(events) == tokens_in(plain) == sum(count for _, count in plain)
    assert pickle.loads(pickle.dumps(events)) == deepcopy(events) == events
    assert eval(repr(events)) == events


def test_they_differ_where_a_time_or_a_count_does():
    assert TokenTimes([1.0]) != TokenTimes([2.0]) and TokenTimes([1.0]) != [(1.0, 2)]
    assert TokenTimes([1.0], [2]) != TokenTimes([1.0]) != TokenTimes([1.0], [3]) and TokenTimes([1.0], [2]) == [
        (1.0, 2)
    ]
    assert TokenTimes([1.0], [1]) == TokenTimes([1.0])
    assert TokenTimes() != 0


def test_each_has_a_count_or_none_has_one():
    with pytest.raises(ValueError, match="2 times of events, and 1 counts"):
        TokenTimes([1.0, 2.0], [1])


@given(EVENTS.map(sorted))
def test_seconds_per_token_are_those_of_the_list(plain):
    one, other = (
        RequestRecord(index=0, intended=0.0, asked_prompt=1, asked_output=1, tokens=tokens)
        for tokens in (TokenTimes.of(plain), plain)
    )
    later = sum(count for _, count in plain[1:])
    assert one.tpot == other.tpot == ((plain[-1][0] - plain[0][0]) / later if later else None)
    assert (one.ttft, one.gaps) == (other.ttft, other.gaps)
