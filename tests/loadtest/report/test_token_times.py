"""Times of single tokens read like a list of events."""

from copy import deepcopy
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.report.columns import Columns
from loadtest.report.records import LoadRun, RequestRecord
from loadtest.report.token_times import TokenTimes, tokens_in

TIMES = st.lists(st.floats(0, 1e6), max_size=12)


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


def test_they_differ_where_a_time_or_a_count_does():
    assert TokenTimes([1.0]) != TokenTimes([2.0]) and TokenTimes([1.0]) != [(1.0, 2)]
    assert TokenTimes() != 0


def run_of(times: list[list[float]], kind: type) -> LoadRun:
    records = [
        RequestRecord(
            index=index,
            intended=0.0,
            asked_prompt=1,
            asked_output=len(each),
            tokens=kind(each) if kind is TokenTimes else [(at, 1) for at in each],
            finished=max(each, default=None),
        )
        for index, each in enumerate(times)
    ]
    return LoadRun(label="", target="", started=0.0, duration=1.0, plan={}, records=records)


@given(st.lists(TIMES.map(sorted), max_size=4))
def test_figures_are_those_of_the_list(times):
    one, other = (asdict(Columns.of(run_of(times, kind))) for kind in (TokenTimes, list))
    timings = [each.pop("timings") for each in (one, other)]
    assert timings[0].keys() == timings[1].keys()
    for name, column in one.items():
        assert column.tolist() == pytest.approx(other[name].tolist(), nan_ok=True) or column.dtype.kind in "USb", name
