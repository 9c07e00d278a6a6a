"""Figures against numpy, and against runs small enough to work out by hand."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.report.columns import Columns, concurrency, needed
from loadtest.report.metrics import Spread, attainment_curve, offered_rate, summarize
from loadtest.report.records import ErrorClass, LoadRun, Objective, RequestRecord

TIMES = st.floats(0, 100, allow_nan=False)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.integers(0, 5))
def test_a_spread_is_numpys_of_the_values_that_are_known(values, unknown):
    spread = Spread.of(np.array(values + [np.nan] * unknown))
    assert spread.count == len(values)
    assert spread.max == max(values)
    for percent in (50, 90, 95, 99):
        assert getattr(spread, f"p{percent}") == np.percentile(values, percent)


def test_a_spread_of_nothing_is_none():
    assert Spread.of(np.array([np.nan])) is None
    assert Spread.of(np.array([])) is None


def test_latencies_count_from_the_intended_time(make):
    late = make.answered(0, 1.0, ttft=0.5, gaps=(0.1, 0.3), sent=1.2)
    latencies = summarize(make.run_of([late])).latencies
    assert latencies["ttft"]["all"].max == pytest.approx(0.5)
    assert latencies["lateness"]["all"].max == pytest.approx(0.2)
    assert latencies["tpot"]["all"].max == pytest.approx(0.2)
    assert latencies["e2e"]["all"].max == pytest.approx(0.9)
    assert latencies["itl"]["all"] == Spread.of(np.diff([at for at, _ in late.tokens]))


def test_gaps_never_cross_from_one_request_into_the_next(make):
    records = [
        make.answered(0, 0.0, ttft=1, gaps=(1, 1)),
        make.answered(1, 50.0, ttft=1),
        make.answered(2, 80.0, ttft=1, gaps=(2,)),
    ]
    columns = Columns.of(make.run_of(records))
    everyone = np.ones(3, dtype=np.bool_)
    assert columns.events.gaps(everyone).tolist() == [1, 1, 2]
    assert columns.events.gap_owners(everyone).tolist() == [0, 0, 2]
    (piece,) = columns.events.pieces()
    assert piece.at[piece.later].tolist() == [2, 3, 83]


def test_only_whole_answers_have_latencies_and_throughput(make):
    broken = make.answered(0, 0.0, ttft=9, gaps=(9,), error=ErrorClass.STREAM, detail="cut off")
    run = make.run_of([broken, make.answered(1, 0.0, ttft=1, gaps=(1, 2))], duration=4.0)
    summary = summarize(run)
    assert summary.latencies["ttft"]["all"].count == 1
    assert summary.latencies["itl"]["all"].max == 2
    assert (summary.output_rate, summary.prompt_rate, summary.total_rate) == (3 / 4, 10 / 4, 13 / 4)
    assert summary.errors == {"stream": 1}
    assert summary.request_rate == 1 / 4


def test_classes_stand_apart_and_together(make):
    records = [
        make.answered(i, 0.0, ttft=ttft, klass=klass) for i, (ttft, klass) in enumerate([(1, "a"), (3, "b"), (5, "b")])
    ]
    spreads = summarize(make.run_of(records)).latencies["ttft"]
    assert {name: (each.count, each.mean) for name, each in spreads.items()} == {
        "a": (1, 1),
        "b": (2, 4),
        "all": (3, 3),
    }


def test_goodput_by_hand(make):
    objectives = {"default": Objective(ttft=1.0), "code": Objective(tpot=0.1)}
    records = [
        make.answered(0, 0.0, ttft=1.0),  # just met
        make.answered(1, 0.0, ttft=1.5, gaps=(0.5,)),
        make.refused(2, 0.0),
        make.answered(3, 0.0, ttft=9.0, gaps=(0.05, 0.05), klass="code"),  # its objective says nothing of TTFT
        make.answered(4, 0.0, ttft=0.1, gaps=(0.05,), klass="code", violations=["usage says 3 tokens, 2 came"]),
        make.answered(5, 0.0, ttft=0.1, gaps=(0.5,), klass="code"),
    ]
    run = make.run_of(records, objectives=objectives, duration=10.0)
    code, default, both = summarize(run).goodput
    assert (code.klass, code.requests, code.met, code.missed) == ("code", 3, 1, {"tpot": 1, "violation": 1})
    assert (default.klass, default.requests, default.met) == ("default", 3, 1)
    assert default.missed == {"failed": 1, "ttft": 1}
    assert (both.klass, both.attainment, both.rate) == ("all", 2 / 6, 0.2)
    assert both.token_rate == pytest.approx(0.4)
    assert summarize(run).attainment == 2 / 6


def test_without_an_objective_nothing_is_judged(make):
    summary = summarize(make.run_of([make.answered(0, 0.0, ttft=1)], objectives={"other": Objective(ttft=1)}))
    assert summary.goodput == [] and summary.attainment is None


bounds = st.none() | st.sampled_from([0.0, 0.5, 1.0]) | st.floats(1e-6, 50)


@settings(deadline=None)
@given(
    st.builds(Objective, ttft=bounds, tpot=bounds, e2e=bounds),
    TIMES,
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), max_size=3),
)
def test_needed_is_at_most_one_exactly_if_the_objective_is_met(objective, ttft, gaps):
    times = np.cumsum([ttft, *gaps]).tolist()
    record = RequestRecord(
        index=0, intended=0.0, asked_prompt=1, asked_output=1, tokens=[(at, 1) for at in times], finished=times[-1]
    )
    assert (needed(record, objective) <= 1) == objective.met_by(record)
    record.violations.append("any")
    assert needed(record, objective) == float("inf")


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_the_attainment_curve_is_goodput_with_scaled_bounds(seed, scale):
    rng = Random(seed)
    records = [
        RequestRecord(index=i, intended=0.0, asked_prompt=1, asked_output=1, tokens=[(rng.random(), 1)], finished=1.0)
        for i in range(20)
    ]
    run = LoadRun(
        label="",
        target="",
        started=0,
        duration=1,
        plan={},
        records=records,
        objectives={"default": Objective(ttft=0.4)},
    )
    loosened = Objective(ttft=0.4 * scale)
    expected = sum(loosened.met_by(record) for record in records) / 20
    assert attainment_curve(Columns.of(run), np.array([scale])).tolist() == [pytest.approx(expected)]


@settings(deadline=None)
@given(st.lists(st.tuples(TIMES, TIMES), max_size=30))
def test_concurrency_is_what_counting_at_every_start_gives(pairs):
    spans = [(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]]
    start, end = np.array([a for a, _ in spans]), np.array([b for _, b in spans])
    times, counts = concurrency(start, end)
    most = max((sum(a <= at < b for a, b in spans) for at, _ in spans), default=0)
    assert counts.max(initial=0) == most
    assert not spans or counts[-1] == 0
    assert np.all(np.diff(times) >= 0)


def test_peak_does_not_count_those_that_follow_each_other(make):
    records = [make.answered(i, float(i), ttft=1.0) for i in range(5)]
    assert summarize(make.run_of(records)).peak == 1


def test_server_timings_cached_share_and_lengths(make):
    records = [
        make.answered(0, 0.0, ttft=1, timings={"queue_ms": 250.0}, cached_tokens=5),
        make.answered(1, 0.0, ttft=1, cached_tokens=None, asked_prompt=11),
        make.answered(2, 0.0, ttft=1, cached_tokens=0, asked_output=7, finish_reason="stop"),
    ]
    summary = summarize(make.run_of(records))
    assert summary.latencies["queue"]["all"].p50 == 0.25
    assert "prefill" not in summary.latencies
    assert summary.cached_share == 5 / 20
    assert (summary.asked_output, summary.asked_prompt) == (2 / 3, 2 / 3)
    assert summary.finish_reasons == {"length": 2, "stop": 1}


def test_without_usage_tokens_are_counted_and_prompts_are_unknown(make):
    record = make.answered(0, 0.0, ttft=1, gaps=(1,), output_tokens=None, prompt_tokens=None)
    summary = summarize(make.run_of([record], duration=1.0))
    assert (summary.output_rate, summary.prompt_rate, summary.total_rate) == (2, None, None)
    assert summary.cached_share is None and summary.asked_prompt is None


def test_messages_are_grouped_without_their_numbers(make):
    records = [make.refused(i, 0.0) for i in range(3)]
    records += [make.answered(3, 0.0, ttft=1, violations=["event 3: twice", "event 14: twice"])]
    summary = summarize(make.run_of(records))
    assert summary.details == {"N: N requests wait": 3}
    assert summary.violations == {"event N: twice": 2} and summary.violating == 1


def test_the_counters_that_moved(make):
    scraped = {"before": {"hits": 1.0, "same": 2.0}, "after": {"hits": 4.0, "same": 2.0, "new": 3.0}}
    summary = summarize(make.run_of([make.answered(0, 0.0, ttft=1)], scraped=scraped))
    assert summary.scraped == {"hits": (1.0, 4.0), "new": (0.0, 3.0)}


def test_offered_rate_is_that_of_the_plan():
    assert offered_rate(np.array([0.0, 1.0, 2.0, 4.0])) == 3 / 4
    assert offered_rate(np.array([3.0, 3.0])) is None
    assert offered_rate(np.array([])) is None


def test_a_run_of_nothing_has_a_summary(make):
    summary = summarize(make.run_of([]))
    assert (summary.requests, summary.peak, summary.latencies, summary.goodput) == (0, 0, {}, [])


def test_a_record_that_just_stops_is_a_broken_stream(make):
    record = make.answered(0, 0.0, ttft=1, finished=None)
    assert summarize(make.run_of([record], duration=1.0)).errors == {"stream": 1}


def test_an_event_without_tokens_of_its_own_gives_no_time_per_token(make):
    record = make.answered(0, 0.0, ttft=1, tokens=[(1.0, 1), (1.5, 0)])
    assert record.tpot is None
    assert "tpot" not in summarize(make.run_of([record])).latencies
