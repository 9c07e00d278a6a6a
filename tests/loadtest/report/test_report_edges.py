"""Runs at the edges: empty, one request, all failed, no tokens, a clock that stands still, huge values. All have a report."""

import warnings
from dataclasses import fields, replace
from html import escape
from itertools import pairwise
from math import inf, isnan, nan, nextafter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from loadtest.report.bootstrap import Sample, block_weights
from loadtest.report.columns import Columns, concurrency, last_known, needed, output_tokens, ratio
from loadtest.report.compare import Side, Verdict, compare
from loadtest.report.metrics import attainment_curve, per_second, summarize
from loadtest.report.objectives import parse_objectives
from loadtest.report.pages import page
from loadtest.report.pages.html import examples, key_figures, render
from loadtest.report.records import ErrorClass, LoadRun, Objective, RequestRecord
from loadtest.report.rows import Section, count, figure, objective_text, percent, sections
from loadtest.report.run_file import read_run, write_run
from loadtest.report.series import STEPS, Series, percentiles, thinned, width_for
from loadtest.report.table import section_table, show
from tests.drawn import drawn

TIMES = st.integers(0, 100_000_000).map(lambda micro: micro / 1_000_000)  # as a file keeps them
OBJECTIVE = Objective(ttft=0.5, tpot=0.1, e2e=5.0)


@st.composite
def records(draw, index=0):
    """A record as a run may leave it: every combination of what happened and what did not."""
    intended = draw(TIMES)
    times = sorted(draw(st.lists(TIMES, max_size=4)))
    made = RequestRecord(
        index=index,
        intended=intended,
        asked_prompt=draw(st.integers(0, 50)),
        asked_output=draw(st.integers(0, 50)),
        klass=draw(st.sampled_from(["default", "chat", "code"])),
        sent=draw(st.none() | TIMES),
        tokens=[(at, draw(st.integers(0, 3))) for at in times],
    )
    made.headers = draw(st.none() | TIMES)
    made.finished = draw(st.none() | TIMES)
    made.error = draw(st.none() | st.sampled_from(ErrorClass))
    made.detail = draw(st.none() | st.text(max_size=10))
    made.prompt_tokens = draw(st.none() | st.integers(0, 2**53))
    made.output_tokens = draw(st.none() | st.integers(0, 2**53))
    made.cached_tokens = draw(st.none() | st.integers(0, 50))
    made.timings = draw(st.none() | st.just({"queue_ms": 1.0, "unknown_ms": 2.0}) | st.just({"queue_ms": 3.0}))
    made.violations = draw(st.lists(st.sampled_from(["rule 1", "rule 2"]), max_size=2))
    made.finish_reason = draw(st.sampled_from([None, "stop", "length"]))
    return made


@st.composite
def runs(draw):
    many = draw(st.integers(0, 6))
    return LoadRun(
        label=draw(st.text(max_size=8)),
        target="http://h/v1",
        started=1.7e9,
        duration=draw(st.just(0.0) | st.floats(0.001, 200)),
        plan={"seed": 0},
        records=[draw(records(index=index)) for index in range(many)],
        objectives=draw(st.sampled_from([{}, {"default": OBJECTIVE}, {"chat": OBJECTIVE, "code": Objective()}])),
        scraped=draw(st.sampled_from([{}, {"before": {"a": 1.0}, "after": {"a": 1.0, "b": 2.0}}])),
    )


@settings(max_examples=drawn(60))
@given(runs())
def test_any_run_has_its_figures_its_tables_and_its_file(tmp_path_factory, run):
    summary = summarize(run)
    whole = sum(record.ok for record in run.records)
    assert (summary.requests, summary.whole) == (len(run.records), whole)
    assert sum(summary.errors.values()) == summary.failed == len(run.records) - whole - summary.unfit - summary.left
    assert sum(summary.finish_reasons.values()) == whole
    assert summary.violating == sum(bool(record.violations) for record in run.records)
    assert 0 <= summary.peak <= len(run.records)
    for shares in (summary.asked_output, summary.asked_prompt, summary.attainment):
        assert shares is None or 0 <= shares <= 1
    for row in summary.goodput:
        assert row.requests - row.met <= sum(row.missed.values()) or row.met == row.requests
        assert row.met <= row.requests and (row.missed or row.met == row.requests)
    assert {name for name, (before, after) in summary.scraped.items() if before != after} == set(summary.scraped)
    for section in sections(run, summary):
        assert {len(row) for row in section.rows} == {len(section.header)}
    assert dict(key_figures(summary))
    path = tmp_path_factory.mktemp("run") / "run.json"
    write_run(run, path)
    assert read_run(path) == run


@settings(max_examples=drawn(60))
@given(runs())
def test_goodput_is_what_the_objectives_say_record_by_record(run):
    columns = Columns.of(run)
    for record, value, judged in zip(run.records, columns.needed, columns.judged, strict=True):
        objective = run.objective(record)
        assert judged == (objective is not None)
        assert isnan(value) if objective is None else (value <= 1) == objective.met_by(record)
    met = sum(bool(objective and objective.met_by(each)) for each in run.records for objective in [run.objective(each)])
    goodput = summarize(run).goodput
    assert not goodput or goodput[-1].met == met
    curve = attainment_curve(columns, np.array([0.0, 0.5, 1.0, 2.0, 1e300]))
    assert (np.diff(curve) >= 0).all() and curve[2] == met / max(1, columns.judged.sum())


@settings(max_examples=drawn(60))
@given(runs(), st.none() | st.floats(0.5, 30))
def test_the_windows_of_a_run_hold_everything_that_happened(run, width):
    columns = Columns.of(run)
    series = Series.of(run, columns, width)
    assert series.start.size and (np.diff(series.start) > 0).all()
    totals = {
        "arrivals": len(run.records),
        "completions": columns.whole.sum(),
        "failures": (columns.awaited & ~columns.whole).sum(),
        "judged": columns.judged.sum(),
        "good": (columns.judged & (columns.needed <= 1)).sum(),
    }
    for name, total in totals.items():
        assert getattr(series, name).sum() * series.width == pytest.approx(total)
    assert {rows.size for rows in (*series.ttft.values(), *series.itl.values())} == {series.start.size}


EDGES = {
    "empty": [],
    "one": [{"tokens": [(1.5, 1)], "finished": 2.0}],
    "failed": [{"error": ErrorClass.CONNECT, "finished": 1.0}] * 3,
    "no tokens": [{"tokens": [], "finished": 2.0, "output_tokens": 0, "prompt_tokens": 0, "cached_tokens": 0}] * 3,
    "events without tokens": [{"tokens": [(1.0, 0), (1.5, 0)], "finished": 2.0}] * 3,
    "the clock stands": [{"intended": 0.0, "sent": 0.0, "tokens": [(0.0, 1), (0.0, 1)], "finished": 0.0}] * 3,
    "before it was due": [{"intended": 5.0, "sent": 4.9, "tokens": [(4.95, 1)], "finished": 4.96}],
    "huge": [{"tokens": [(1e9, 2**53)], "finished": 1e9, "output_tokens": 2**53, "prompt_tokens": 2**53}] * 2,
    "markup": [{"error": ErrorClass.STREAM, "detail": "[bold]<script>&", "klass": "<b>[red]", "violations": ["<i>[/]"]}]
    * 2,
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("duration", [0.0, 10.0])
def test_a_run_at_the_edge_has_a_page_and_a_table(name, duration):
    made = [
        RequestRecord(index=index, asked_prompt=1, asked_output=1, **{"intended": float(index)} | more)
        for index, more in enumerate(EDGES[name])
    ]
    objectives = {"default": OBJECTIVE}
    run = LoadRun(label="<x>", target="t", started=0.0, duration=duration, plan={}, records=made, objectives=objectives)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = summarize(run)
        html = render(run, summary, [])
    assert "<script>" not in html and "<x>" not in html and "&lt;x&gt;" in html
    console = Console(width=120, no_color=True)
    with console.capture() as printed:
        show(run, summary, console)
    assert "Load" in printed.get() and f"planned  {len(made)}".split()[0] in printed.get()
    bad = [record for record in made if not record.ok or record.violations]
    assert len(examples(run).rows) == len(bad)
    if name == "markup":
        assert "[bold]<script>&" in printed.get()
    if name == "empty":
        assert (summary.offered, summary.peak, summary.latencies, summary.goodput) == (None, 0, {}, [])


@given(st.floats(1e-9, 1e9), st.integers(-3, 3))
def test_a_value_one_ulp_over_its_bound_is_over_it(bound, steps):
    value = bound
    for _ in range(abs(steps)):
        value = nextafter(value, inf if steps > 0 else 0.0)
    assert (ratio(value, bound) > 1) == (value > bound)
    record = RequestRecord(index=0, intended=0.0, asked_prompt=1, asked_output=1, tokens=[(value, 1)], finished=value)
    for objective in (Objective(ttft=bound), Objective(e2e=bound)):
        assert (needed(record, objective) <= 1) == objective.met_by(record)


@pytest.mark.parametrize(
    ("value", "bound", "found"), [(0.0, 0.0, 0.0), (1.0, 0.0, inf), (-1.0, 0.0, 0.0), (-1.0, 2.0, -0.5)]
)
def test_ratios_at_zero(value, bound, found):
    assert ratio(value, bound) == found


@given(st.lists(st.tuples(TIMES, TIMES), max_size=12))
def test_concurrency_counts_intervals_that_hold_the_instant(pairs):
    start, end = np.array([min(pair) for pair in pairs]), np.array([max(pair) for pair in pairs])
    times, counts = concurrency(start, end)
    assert times.size == 2 * len(pairs) and (counts[-1:] == 0).all()
    for place, at in enumerate(times):
        if place + 1 == times.size or times[place + 1] > at:
            assert counts[place] == sum(low <= at < high for low, high in zip(start, end, strict=True))
    chosen = np.arange(len(pairs)) % 2 == 0
    assert concurrency(start, end, chosen)[0].size == 2 * chosen.sum()


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(-5, 5)), max_size=20), st.floats(0.5, 20))
def test_percentiles_of_windows_are_numpys_of_each_window(points, width):
    edges = np.arange(int(50 / width) + 2) * width
    times, values = (np.array([point[place] for point in points]) for place in (0, 1))
    rows = percentiles(times, values, edges)
    for place, (low, high) in enumerate(pairwise(edges)):
        inside = values[(times >= low) & (times < high)]
        for percentage, column in rows.items():
            assert isnan(column[place]) if not inside.size else column[place] == np.percentile(inside, percentage)


@given(st.floats(0, 1e6), st.integers(1, 200))
def test_windows_are_round_and_not_too_many(duration, windows):
    width = width_for(duration, windows)
    assert width > 0 and duration / width <= windows * (1 + 1e-9)
    assert width in STEPS or duration / STEPS[-1] > windows


@given(st.integers(0, 10**5), st.integers(1, 5000))
def test_thinning_keeps_the_first_and_at_most_so_many(size, most):
    kept = range(size)[thinned(size, most)]
    assert len(kept) <= most and (not size or kept[0] == 0)
    assert size > most or len(kept) == size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0512, "0.0512"),
        (12.345, "12.35"),
        (123.45, "123.5"),
        (12345.6, "12,346"),
        (-12.345, "-12.35"),
        (nan, "nan"),
    ],
)
def test_figures(value, text):
    assert figure(value) == text


@given(st.floats(0, 1))
def test_a_share_is_never_rounded_up_to_all(share):
    text = percent(share)
    assert (text == "100.0 %") == (share == 1)
    assert abs(float(text.strip("> %")) - 100 * share) <= 0.1


@given(st.floats(-1e12, 1e12), st.floats(0, 1e6) | st.just(-1.0))
def test_nothing_is_divided_by_no_time(amount, duration):
    assert per_second(amount, duration) == (amount / duration if duration > 0 else 0.0)


@given(st.lists(st.lists(st.text(max_size=6), min_size=3, max_size=3), max_size=4), st.text(max_size=6))
def test_every_cell_of_a_page_is_escaped(rows, title):
    section = Section(title, ("a", "b", "c"), [tuple(row) for row in rows])
    html = page.table(section, {"<": "good"})
    assert html.count("<td") == 3 * len(rows) and html.count("<tr>") == len(rows) + 1
    assert f"<h2>{escape(title)}</h2>" in html
    for cell in {cell for row in rows for cell in row}:
        assert f">{escape(cell)}</td>" in html
    assert section_table(section).row_count == len(rows)
    assert f"<pre>{escape(title)}</pre>" in page.text("x", title)
    assert f"<p>{escape(title)}</p>" in page.warning("x", [title])
    assert f"<b>{escape(title)}</b>" in page.tiles([("x", title)])


def test_columns_of_figures_are_told_from_text():
    section = Section("t", ("a", "b", "c"), [("1", "-1.5", "x"), ("2", "", "1"), ("3", "> 99.9 %", "2")])
    assert [section.figures(place) for place in range(3)] == [False, True, False]


@given(
    st.dictionaries(
        st.sampled_from(["default", "chat", "a:b"]), st.tuples(*[st.none() | st.floats(0.001, 1e4)] * 3), min_size=1
    )
)
def test_objectives_come_back_from_their_text(bounds):
    objectives = {name: Objective(*values) for name, values in bounds.items() if any(values)}
    parts = []
    for name, each in objectives.items():
        pairs = {field.name: getattr(each, field.name) for field in fields(Objective)}
        words = ", ".join(f"{key}={value!r}s" for key, value in pairs.items() if value is not None)
        parts.append(f"{name}:{words}")
    assert parse_objectives(";".join(parts)) == objectives


@pytest.mark.parametrize(
    "text",
    ["ttft=1s;ttft=2s", "chat:ttft=1s;chat:tpot=1s", ":ttft=1s", "ttft", "ttft=", "ttft=0", "ttft=-1s", "ttft=nan", "ttft=inf",
     "ttft=1s,ttft=2s", "size=1", "chat:", "ttft=1e400s"],
)  # fmt: skip
def test_objectives_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=r"ttft|time|class"):
        parse_objectives(text)


def test_an_objective_without_bounds_asks_for_a_whole_answer():
    assert objective_text(Objective()) == "whole"
    assert objective_text(OBJECTIVE) == "ttft ≤ 500 ms, tpot ≤ 100 ms, e2e ≤ 5000 ms"


@given(
    st.lists(st.tuples(st.floats(-10, 10), st.integers(0, 4)), min_size=1, max_size=20), st.floats(0, 100), st.data()
)
def test_a_weighted_percentile_is_numpys_of_the_repeated_values(pairs, percentage, data):
    values, owners = np.array([value for value, _ in pairs]), np.array([owner for _, owner in pairs])
    weights = np.array(data.draw(st.lists(st.integers(0, 3), min_size=5, max_size=5)))
    repeated = np.repeat(values, weights[owners])
    found = Sample(values, owners).percentile(percentage, weights)
    assert isnan(found) if not repeated.size else found == pytest.approx(np.percentile(repeated, percentage), abs=1e-9)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 9))
def test_a_resample_draws_as_many_as_there_are(size, block, seed):
    weights = block_weights(np.random.default_rng(seed), size, block)
    assert weights.size == size and weights.sum() == size and weights.min() >= 0


def test_a_run_against_itself_has_no_difference(make):
    run = make.drawn_run(3, requests=80)
    for each in compare(Side.of([run]), Side.of([run], "B"), resamples=100):
        assert (each.change, each.low, each.high) == (0, 0, 0)
        assert each.verdict in (Verdict.SAME, Verdict.FEW)
        assert len(each.texts()) == 6


def test_of_a_run_without_answers_only_what_both_have_is_compared(make):
    good = make.drawn_run(3, requests=60)
    bad = replace(good, records=[make.refused(each.index, each.intended) for each in good.records])
    found = {each.name: each for each in compare(Side.of([good]), Side.of([bad], "B"), resamples=100)}
    assert found["failed"].second == 1 and found["failed"].verdict is Verdict.WORSE
    assert not any("TTFT" in name for name in found)
    with pytest.raises(ValueError, match="without requests"):
        Side.of([make.run_of([])])


def test_the_last_time_known_of_a_record_and_its_tokens():
    record = RequestRecord(index=0, intended=1.0, asked_prompt=1, asked_output=1)
    seen = [last_known(record)]
    for name, value in (("sent", 2.0), ("headers", 3.0), ("tokens", [(4.0, 2), (5.0, 3)]), ("finished", 6.0)):
        setattr(record, name, value)
        seen.append(last_known(record))
    assert seen == [1.0, 2.0, 3.0, 5.0, 6.0]
    assert output_tokens(record) == 5
    record.output_tokens = 0
    assert output_tokens(record) == 0


def test_counts():
    assert [count(value) for value in (0, 999.6, 1234567)] == ["0", "1,000", "1,234,567"]
