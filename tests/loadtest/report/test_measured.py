"""Warm-up and cool-down: what was sent then counts for nothing but the pictures over time."""

from dataclasses import replace
from math import inf

import pytest
from rich.console import Console

from loadtest.report.compare import Side
from loadtest.report.metrics import summarize
from loadtest.report.pages.html import render
from loadtest.report.pages.plots import View
from loadtest.report.records import Objective, measured_window
from loadtest.report.run_file import read_run, write_run
from loadtest.report.table import show
from loadtest.workload.arrivals import ArrivalError
from loadtest.workload.plan import LoadShape, make_plan
from loadtest.workload.traces import Trace, TraceRequest


@pytest.fixture
def run(make):
    """A request a second, of 10 tokens in 0.9 s; the first five are slow, and so are the last five."""
    records = [
        make.answered(second, float(second), ttft=2.0 if second < 5 or second >= 25 else 0.1, gaps=(0.1,) * 8)
        for second in range(30)
    ]
    plan = {"measured": measured_window(5.0, 4.5, records)}
    return make.run_of(records, plan=plan, objectives={"default": Objective(ttft=1.0)})


def test_figures_are_those_between(run):
    assert run.window == (5.0, 24.5) and len(run.measured.records) == 20
    summary = summarize(run)
    assert (summary.requests, summary.whole, summary.attainment) == (20, 20, 1.0)
    assert summary.latencies["ttft"]["all"].max == pytest.approx(0.1)
    assert summary.offered == pytest.approx(1.0)
    everything = summarize(replace(run, plan={}))
    assert everything.requests == 30 and everything.attainment == pytest.approx(20 / 30)


def test_rates_are_what_the_server_did_in_that_time(run):
    summary = summarize(run)
    late = 2  # of the slow requests of the warm-up, which the server answered after it; the last one of the window ended after that
    assert summary.request_rate == pytest.approx((19 + late) / 19.5)
    assert summary.output_rate == pytest.approx(((19 + late) * 9 + 4) / 19.5)
    assert summary.prompt_rate == pytest.approx((20 + late) * 10 / 19.5)


def test_table_page_and_file_say_from_when_to_when(run, tmp_path):
    console = Console(width=150, no_color=True)
    with console.capture() as printed:
        show(run, summarize(run), console)
    said = "measured from 5 s to 24.5 s, without warm-up and cool-down: 20 of 30 requests"
    assert said in printed.get() and said in render(run, summarize(run), [])
    write_run(run, tmp_path / "run.json")
    assert read_run(tmp_path / "run.json").window == run.window


def test_pictures_over_time_show_all_and_distributions_what_counts(run):
    view = View.of(run)
    assert view.columns.intended.size == 30 and view.counted.intended.size == 20
    assert view.series.arrivals.sum() * view.series.width == 30 and view.series.judged.sum() * view.series.width == 20


def test_a_comparison_is_of_what_counts(run):
    side = Side.of([run])
    (compared,) = side.runs
    figures = {each.name: each.under(compared.whole()) for each in compared.figures}
    assert figures["TTFT p99 (ms)"] == pytest.approx(100) and figures["attainment"] == 1.0
    assert figures["output tokens/s"] == pytest.approx(9, rel=0.15)
    with pytest.raises(ValueError, match="cannot be compared"):
        Side.of([replace(run, plan={"measured": (100.0, None)})])


def test_without_either_everything_counts(make):
    run = make.drawn_run(1, 20)
    assert run.window == (-inf, inf) and run.measured is run and measured_window(0, 0, run.records) is None
    assert measured_window(3, 0, run.records) == (3, None)


def test_where_nothing_is_left_the_plan_is_refused():
    rows = [
        TraceRequest(line=second + 1, arrival=float(second), prompt_tokens=1, output_tokens=1) for second in range(10)
    ]
    trace = Trace(name="t", format="f", requests=rows)
    assert len(make_plan(trace, LoadShape(warm_up=4, cool_down=4)).requests) == 10
    with pytest.raises(ArrivalError, match=r"nothing is left between --warm-up 5 and --cool-down 4\.5 s"):
        make_plan(trace, LoadShape(warm_up=5, cool_down=4.5))
