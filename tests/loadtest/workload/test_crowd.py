"""Several stretches of one trace at once: as many requests as all of them have, each with texts of its own."""

import pytest

from loadtest.workload.arrivals import ArrivalError, parse_arrivals
from loadtest.workload.crowd import crowd
from loadtest.workload.plan import LoadShape, make_plan
from loadtest.workload.traces import Trace, TraceRequest


def trace() -> Trace:
    rows = [
        TraceRequest(
            line=second + 1,
            arrival=float(second),
            prompt_tokens=96,
            output_tokens=5,
            blocks=(0, second % 7 + 1),
            block_tokens=64,
        )
        for second in range(101)
    ]
    return Trace(name="a.jsonl", format="mooncake", requests=rows)


def test_each_stretch_begins_elsewhere_and_shares_nothing_with_the_others():
    plan = crowd(trace(), LoadShape(window=(0.0, 20.0)), 4)
    assert [request.index for request in plan.requests] == list(range(80))
    times = [request.intended for request in plan.requests]
    assert times == sorted(times) and times[-1] < 20.0
    firsts = {request.blocks[0] for request in plan.requests}
    assert firsts == {0, 8, 16, 24}
    lines = {first: min(r.line for r in plan.requests if r.blocks[0] == first) for first in firsts}
    assert lines == {0: 1, 8: 21, 16: 41, 24: 61}
    assert plan.described["crowd"] == 4


def test_one_stretch_is_the_window_itself():
    load = LoadShape(window=(10.0, 30.0), limit=7)
    assert crowd(trace(), load, 1).requests == make_plan(trace(), load).requests


def test_sessions_are_told_apart_and_the_limit_is_of_all():
    rows = [
        TraceRequest(line=1 + at, arrival=float(at), prompt_tokens=9, output_tokens=1, session="s") for at in range(9)
    ]
    plan = crowd(Trace(name="b.csv", format="burstgpt", requests=rows), LoadShape(window=(0.0, 2.0), limit=3), 2)
    assert [request.session for request in plan.requests] == ["s #0", "s #1", "s #0"]


@pytest.mark.parametrize(
    "load",
    [
        LoadShape(),
        LoadShape(window=(0.0, 500.0)),
        LoadShape(window=(0.0, 9.0), arrivals=parse_arrivals("poisson:rate=5")),
    ],
)
def test_what_cannot_be_played_at_once_is_refused(load):
    with pytest.raises(ArrivalError, match="a crowd"):
        crowd(trace(), load, 2)
