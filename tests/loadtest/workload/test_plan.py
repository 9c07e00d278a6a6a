"""Arrivals have the stated rates and shapes; plans take the wanted part of a trace, the same each time."""

from dataclasses import replace
from itertools import islice, pairwise, takewhile
from pathlib import Path
from random import Random
from statistics import mean, pstdev

import numpy as np
import pytest

from loadtest.report.metrics import offered_rate
from loadtest.workload.arrivals import (
    ArrivalError,
    Closed,
    Gamma,
    OnOff,
    Poisson,
    Ramp,
    RateSteps,
    parse_arrivals,
    spread,
)
from loadtest.workload.plan import LoadShape, make_plan
from loadtest.workload.traces import LeftOut, Trace, TraceRequest
from loadtest.workload.traces.read import read_trace

DATA = Path(__file__).parents[1] / "data"
MANY = 20_000


def drawn(process, many=MANY):
    return list(islice(process.times(Random(1)), many))


def until(process, end):
    return list(takewhile(lambda at: at < end, process.times(Random(1))))


def spread_of_gaps(times):
    gaps = [after - before for before, after in pairwise(times)]
    return pstdev(gaps) / mean(gaps)


def trace(*arrivals, **more):
    requests = [TraceRequest(line=n, arrival=at, prompt_tokens=10, output_tokens=5) for n, at in enumerate(arrivals, 1)]
    return Trace(name="t", format="f", requests=requests, **more)


@pytest.mark.parametrize(
    ("process", "rate", "cv"),
    [(Poisson(5), 5, 1), (Gamma(5, 3), 5, 3), (Gamma(5, 0.5), 5, 0.5), (Poisson(1).with_rate(8), 8, 1)],
)
def test_rate_and_burstiness(process, rate, cv):
    times = drawn(process)
    assert times == sorted(times)
    assert len(times) / times[-1] == pytest.approx(rate, rel=0.08)
    assert spread_of_gaps(times) == pytest.approx(cv, rel=0.08)


def test_on_and_off():
    process = OnOff(high=20, low=0, on=2, off=6)
    times = until(process, 20_000)
    assert len(times) / 20_000 == pytest.approx(5, rel=0.05)
    assert spread_of_gaps(times) > 2
    scaled = process.with_rate(10)
    assert len(until(scaled, 20_000)) / 20_000 == pytest.approx(10, rel=0.05)
    assert scaled.on == 2


@pytest.mark.parametrize(("start", "end"), [(0, 20), (20, 2), (5, 5)])
def test_ramp(start, end):
    times = until(Ramp(start, end, 1000), 2000)
    first = sum(at < 500 for at in times)
    assert first == pytest.approx((3 * start + end) / 4 * 500, rel=0.1)
    assert sum(at >= 1000 for at in times) == pytest.approx(end * 1000, rel=0.1)


def test_steps_and_a_pause_between():
    times = until(RateSteps((4, 0, 8), 1000), 3000)
    counts = [sum(begin <= at < begin + 1000 for at in times) for begin in (0, 1000, 2000)]
    assert counts == [pytest.approx(4000, rel=0.05), 0, pytest.approx(8000, rel=0.05)]


def test_arrivals_as_text():
    assert parse_arrivals("trace") is None
    assert parse_arrivals("poisson:rate=2.5") == Poisson(2.5)
    assert parse_arrivals("gamma:rate=5,cv=3") == Gamma(5, 3)
    assert parse_arrivals("step:rates=1/2,each=3") == RateSteps((1, 2), 3)
    assert parse_arrivals("closed:users=8,think=.5") == Closed(8, 0.5)


@pytest.mark.parametrize(
    "text",
    [
        "weibull",
        "poisson:speed=2",
        "poisson:rate=x",
        "poisson:rate=0",
        "gamma:cv=-1",
        "closed:users=0",
        "closed:users=1.5",
        "step:rates=1/0",
        "onoff:low=-1",
        "ramp:end=0",
        "trace:rate=1",
        "poisson:rate=inf",
    ],
)
def test_arrivals_that_make_no_sense_are_refused(text):
    with pytest.raises(ArrivalError):
        parse_arrivals(text)


def test_spreading_stays_inside_the_tick_and_in_order():
    stamps = [0, 0, 0, 3, 3, 9]
    found = spread(stamps, 3, Random(0))
    assert found == sorted(found)
    assert [at // 3 * 3 for at in found] == stamps
    assert len(set(found)) == len(found)


def test_window_limit_and_speed():
    plan = make_plan(trace(0, 10, 20, 30, 40), LoadShape(window=(10, 40), limit=2, speed=5))
    assert [(each.index, each.line, each.intended) for each in plan.requests] == [(0, 2, 0), (1, 3, 2)]


def test_duration_and_rate_stretch_the_times():
    assert [each.intended for each in make_plan(trace(0, 1, 4), LoadShape(duration=8)).requests] == [0, 2, 8]
    assert make_plan(trace(0, 1, 4), LoadShape(rate=0.5)).requests[-1].intended == 4


def test_drawn_arrivals_go_through_the_trace_again_and_share_nothing_with_the_first_round():
    whole = read_trace(DATA / "mooncake.jsonl")
    requests = make_plan(whole, LoadShape(arrivals=Poisson(10), duration=9)).requests
    assert len(requests) > 2 * len(whole.requests)
    assert requests[-1].intended < 9
    assert requests[30].prompt_tokens == requests[0].prompt_tokens
    assert not {block for each in requests[:30] for block in each.blocks} & set(requests[30].blocks)
    chats = make_plan(read_trace(DATA / "burstgpt_3.csv"), LoadShape(arrivals=Closed(2), limit=31)).requests
    assert chats[30].session == f"{chats[0].session} #1"


def test_scaled_lengths_keep_the_sharing():
    whole = read_trace(DATA / "mooncake.jsonl")
    for scale in (0.03, 0.1, 0.77):
        for before, after in zip(whole.requests, make_plan(whole, LoadShape(scale=scale)).requests, strict=True):
            assert after.blocks == before.blocks
            assert -(-after.prompt_tokens // after.block_tokens) == len(after.blocks)
            assert after.prompt_tokens == pytest.approx(before.prompt_tokens * scale, rel=0.05, abs=2)


def test_bounds_cut_lengths_and_blocks():
    whole = read_trace(DATA / "mooncake.jsonl")
    requests = make_plan(whole, LoadShape(max_prompt=1000, max_output=7)).requests
    assert max(each.prompt_tokens for each in requests) == 1000
    assert {len(each.blocks) for each in requests if each.prompt_tokens == 1000} == {2}
    assert max(each.output_tokens for each in requests) == 7


def test_the_same_seed_gives_the_same_plan():
    shape = LoadShape(arrivals=Gamma(3, 2), duration=30, seed=4)
    assert make_plan(trace(0, 1), shape) == make_plan(trace(0, 1), shape)
    assert make_plan(trace(0, 1), shape).requests != make_plan(trace(0, 1), replace(shape, seed=5)).requests


def test_what_makes_no_plan_is_refused():
    with pytest.raises(ArrivalError, match="goes from 0 to 1 s"):
        make_plan(trace(0, 1), LoadShape(window=(5, 9)))
    with pytest.raises(ArrivalError, match="has no times"):
        make_plan(trace(0, 0, timed=False))
    with pytest.raises(ArrivalError, match="at once"):
        make_plan(trace(0, 0), LoadShape(rate=5))
    for wrong in ({"speed": 2, "rate": 1}, {"speed": 2, "arrivals": Poisson()}, {"limit": 0}, {"scale": -1}):
        with pytest.raises(ArrivalError):
            LoadShape(**wrong)
    with pytest.raises(ArrivalError, match="no --rate"):
        LoadShape(arrivals=Closed(), rate=4)
    with pytest.raises(ArrivalError, match="no single rate"):
        make_plan(trace(0), LoadShape(arrivals=RateSteps(), rate=4))


def test_the_rate_that_is_asked_for_is_the_one_that_is_planned():
    requests = make_plan(trace(*range(0, 200, 7)), LoadShape(rate=5, limit=20)).requests
    assert len(requests) == 20 and offered_rate(np.array([each.intended for each in requests])) == pytest.approx(5)


@pytest.mark.parametrize(
    ("shape", "lines"),
    [
        (LoadShape(), [2, 5, 8, 12]),
        (LoadShape(window=(0, 3)), [2]),
        (LoadShape(window=(2, 6)), [5]),
        (LoadShape(window=(5, float("inf"))), [8, 12]),
        (LoadShape(window=(2, float("inf")), limit=4), [5]),
        (LoadShape(limit=2), [2]),
    ],
)
def test_rows_left_out_are_those_within_the_window(shape, lines):
    whole = trace(*(line for line in range(12) if line not in (1, 4, 7, 11)))
    rows = [replace(request, line=int(request.arrival) + 1) for request in whole.requests]
    left_out = [LeftOut(line, f"t, line {line}: no") for line in (2, 5, 8, 12)]
    found = make_plan(replace(whole, requests=rows, problems=left_out), shape).problems
    assert found == [f"t, line {line}: no" for line in lines]
