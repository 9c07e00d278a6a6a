"""What is read piece by piece of a run's events gives the figures, the pictures and the file of arrays of all of them."""

import json
from dataclasses import MISSING, asdict, fields, replace
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.report import events as events_module
from loadtest.report import run_file
from loadtest.report.bootstrap import ComparedRun, Sample
from loadtest.report.columns import Columns
from loadtest.report.events import Events
from loadtest.report.metrics import PERCENTILES, Throughput, by_class, gap_spreads, summarize
from loadtest.report.pages.plots import View, latency_cdfs
from loadtest.report.records import MEASURED, SCHEMA, LoadRun, Objective, RequestRecord
from loadtest.report.rows import sections
from loadtest.report.run_file import RunFileError, read_run, write_run
from loadtest.report.series import Series
from loadtest.report.token_times import TokenTimes
from tests.drawn import drawn

TIMES = st.integers(0, 300).map(lambda tenths: tenths / 10)  # so coarse that there are ties
EVENTS = st.lists(st.tuples(TIMES, st.integers(0, 3)), max_size=7).map(sorted) | st.lists(
    TIMES.map(lambda at: (at, 1)), max_size=7
).map(sorted)


@st.composite
def runs(draw) -> LoadRun:
    """Any events of any requests, whole ones or not, kept in either way; few requests leave windows empty."""
    records = []
    for index in range(draw(st.integers(0, 7))):
        tokens = draw(EVENTS)
        records.append(
            RequestRecord(
                index=index,
                intended=draw(TIMES),
                asked_prompt=1,
                asked_output=len(tokens),
                klass=draw(st.sampled_from(["default", "chat", "code"])),
                tokens=draw(st.sampled_from([list, TokenTimes.of]))(tokens),
                finished=draw(st.none() | TIMES),
                sent=draw(st.none() | TIMES),
                prompt_tokens=draw(st.none() | st.integers(0, 9)),
                timings=draw(st.none() | st.just({"queue_ms": 1.0004})),
                violations=draw(st.sampled_from([[], ["rule"]])),
            )
        )
    plan = draw(st.sampled_from([{}, {MEASURED: [5.0, None]}, {MEASURED: [2.5, 20.0]}]))
    objectives = draw(st.sampled_from([{}, {"default": Objective(ttft=0.5, tpot=0.1)}]))
    return LoadRun(label="é", target="t", started=0.0, duration=30.0, plan=plan, records=records, objectives=objectives)


@pytest.fixture(params=[1, 4, 1 << 20], autouse=True, scope="module")
def piece(request):
    """Most events that are looked at together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events_module, "PIECE", request.param)
        yield


def in_arrays(run: LoadRun) -> dict[str, np.ndarray]:
    """All events and all gaps, each with its request: as Columns had them before they were read in pieces."""
    owner = np.array([place for place, each in enumerate(run.records) for _ in each.tokens], dtype=np.int64)
    flat = np.array([event for each in run.records for event in each.tokens], dtype=np.float64).reshape(-1, 2)
    same = owner[1:] == owner[:-1]
    return {
        "owner": owner,
        "at": flat[:, 0],
        "count": flat[:, 1],
        "gap": np.diff(flat[:, 0])[same],
        "gap_owner": owner[1:][same],
        "gap_at": flat[1:, 0][same],
    }


@settings(max_examples=drawn(40))
@given(runs(), st.data())
def test_pieces_are_the_arrays_cut_between_requests(run, data):
    events, arrays = Events([each.tokens for each in run.records]), in_arrays(run)
    pieces = list(events.pieces())
    assert [size for piece in pieces for size in piece.lengths] == [len(each.tokens) for each in run.records]
    for name in ("at", "count"):
        assert [value for piece in pieces for value in getattr(piece, name)] == arrays[name].tolist()
    assert [gap for piece in pieces for gap in piece.gaps] == arrays["gap"].tolist()
    assert all(piece.at.size <= max(events_module.PIECE, piece.lengths.max()) for piece in pieces)
    chosen = np.array([data.draw(st.booleans()) for _ in run.records], dtype=np.bool_)
    kept, step = chosen[arrays["gap_owner"]], data.draw(st.integers(1, 4))
    assert events.gaps(chosen).tolist() == arrays["gap"][kept].tolist()
    assert events.gap_owners(chosen, step).tolist() == arrays["gap_owner"][kept][::step].tolist()


@settings(max_examples=drawn(40))
@given(runs())
def test_figures_are_those_of_the_arrays(run):
    columns, arrays = Columns.of(run), in_arrays(run)
    kept = columns.whole[arrays["gap_owner"]]
    values, owners = arrays["gap"][kept], arrays["gap_owner"][kept]
    assert gap_spreads(columns) == by_class(values, columns.klass[owners])
    begin, end = run.window
    inside = columns.whole[arrays["owner"]] & (begin <= arrays["at"]) & (arrays["at"] < end)
    if run.measured is not run:
        duration = run.measured.duration
        rate = arrays["count"][inside].sum() / duration if duration > 0 else 0.0
        assert Throughput.of(run, columns).output_tokens == rate
    listed = replace(run, records=[replace(each, tokens=list(each.tokens)) for each in run.records])
    assert sections(run, summarize(run)) == sections(listed, summarize(listed))


@settings(max_examples=drawn(40))
@given(runs(), st.none() | st.sampled_from([0.1, 0.7, 40.0]))
def test_windows_are_those_of_the_arrays(run, width):
    columns, arrays = Columns.of(run), in_arrays(run)
    series = Series.of(run, columns, width)
    edges = np.append(series.start, series.start[-1] + series.width)
    edges = np.arange(series.start.size + 1, dtype=np.float64) * series.width
    tokens = np.histogram(arrays["at"], edges, weights=arrays["count"])[0]
    assert series.output_rate.tolist() == (tokens / series.width).tolist()
    order = np.argsort(arrays["gap_at"], kind="stable")
    parts = np.split(arrays["gap"][order], np.searchsorted(arrays["gap_at"][order], edges[1:-1]))
    for percent in PERCENTILES:
        wanted = [np.percentile(part, percent) if part.size else np.nan for part in parts]
        np.testing.assert_array_equal(series.itl[percent], wanted)


@settings(max_examples=drawn(10), deadline=None)
@given(runs())
def test_a_curve_is_that_of_the_arrays(run):
    view, arrays = View.of(run), in_arrays(run.measured)
    (drawing,) = [each for each in latency_cdfs([view]).drawings if each.name == "itl_cdf"]
    lines = {line.get_label(): line.get_data() for line in drawing.panel.get_lines() if line.get_linestyle() == "-"}
    for name in {"all", *view.columns.klass.tolist()}:
        chosen = view.counted.whole & ((name == "all") | (view.counted.klass == name))
        values = np.sort(arrays["gap"][chosen[arrays["gap_owner"]]])
        if name in lines and values.size:
            x, y = lines[name]
            assert x.tolist() == [*values, values[-1]]
            assert y.tolist() == [*(np.arange(1, values.size + 1) / values.size), 1]


@settings(max_examples=drawn(20))
@given(runs().filter(lambda run: run.measured.records), st.integers(1, 50))
def test_a_comparison_has_the_percentiles_of_the_arrays(run, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loadtest.report.bootstrap.MOST_VALUES", most)
        compared = ComparedRun(run)
    arrays = in_arrays(run.measured)
    kept = compared.columns.whole[arrays["gap_owner"]]
    step = max(1, -(-int(kept.sum()) // most))
    sample = Sample(arrays["gap"][kept][::step], arrays["gap_owner"][kept][::step])
    weights = compared.draw(np.random.default_rng(1), compared.block)
    for figure in compared.figures:
        if figure.name.startswith("ITL"):
            percent = int(figure.name.split()[1][1:])
            np.testing.assert_equal(figure.under(weights), 1000 * sample.percentile(percent, weights.requests))


def as_one_object(run: LoadRun) -> str:
    """A run's file, all of it made before anything is written."""
    records: dict[str, object] = {}
    for each in fields(RequestRecord):
        values = [getattr(record, each.name) for record in run.records]
        if each.name in ("intended", "sent", "headers", "finished"):
            values = [None if value is None else round(value, 6) for value in values]
        default = [] if each.name == "violations" else each.default
        if each.name not in ("tokens", "timings") and (default is MISSING or any(value != default for value in values)):
            records[each.name] = values
    micros = [[round(at * 1e6) for at, _ in each.tokens] for each in run.records]
    records["event_us"] = [[*each[:1], *(after - before for before, after in pairwise(each))] for each in micros]
    counts = [[count for _, count in each.tokens] for each in run.records]
    records["event_tokens"] = [each if len(set(each)) > 1 else next(iter(each), 1) for each in counts]
    if any(each.timings for each in run.records):
        records["timings"] = {"queue_ms": [each.timings and round(each.timings["queue_ms"], 3) for each in run.records]}
    content = {"schema": SCHEMA} | {each.name: getattr(run, each.name) for each in fields(run)} | {"records": records}
    content["objectives"] = {name: asdict(bounds) for name, bounds in run.objectives.items()}
    return json.dumps(content, separators=(",", ":"))


@settings(max_examples=drawn(40))
@given(runs(), st.sampled_from([1, 9, 1 << 20]))
def test_a_file_in_pieces_has_the_bytes_of_one_object_and_is_read_in_pieces(tmp_path_factory, run, size):
    path = tmp_path_factory.mktemp("run") / "run.json"
    write_run(run, path)
    assert path.read_text(encoding="utf-8") == as_one_object(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_file, "_PIECE", size)
        again = read_run(path)
    path.write_text(json.dumps(json.loads(as_one_object(run)), indent=1))
    assert read_run(path) == again, "written by another program, with spaces"
    assert again.records == [replace(each, timings=each.timings and {"queue_ms": 1.0}) for each in run.records]
    assert all(isinstance(each.tokens, TokenTimes) for each in again.records), (
        "a list of pairs is twelve times as large"
    )


def test_times_of_events_that_look_so_elsewhere_are_left_where_they_are(tmp_path):
    tokens = TokenTimes([0.5, 0.75])
    record = RequestRecord(
        index=0, intended=0.0, asked_prompt=1, asked_output=2, tokens=tokens, detail='"event_us":[[5]]'
    )
    run = LoadRun(
        label='"event_us":[[', target="]]", started=0.0, duration=1.0, plan={"seed": [[1]]}, records=[record] * 3
    )
    path = tmp_path / "run.json"
    write_run(run, path)
    assert read_run(path) == run
    text = path.read_text()
    for wrong, said in (("[500000,25x]", "JSONDecodeError"), ("[500000,null]", "TypeError"), ("[5],[5]", "ValueError")):
        path.write_text(text.replace("[500000,250000]", wrong, 1))
        with pytest.raises(RunFileError, match=said):
            read_run(path)
    for length in range(text.index("event_us"), len(text)):
        path.write_text(text[:length])
        with pytest.raises(RunFileError):
            read_run(path)


def test_a_time_that_is_no_number_is_not_written(tmp_path):
    path = tmp_path / "run.json"
    record = RequestRecord(
        index=0, intended=0.0, asked_prompt=1, asked_output=2, tokens=TokenTimes([0.5, float("inf")])
    )
    path.write_text("before")
    with pytest.raises(FloatingPointError):
        write_run(LoadRun(label="", target="", started=0.0, duration=1.0, plan={}, records=[record]), path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_more_gaps_than_a_piece_have_the_percentiles_of_all():
    rng = np.random.default_rng(5)
    times = [np.cumsum(rng.exponential(0.02, size)).tolist() for size in rng.integers(0, 60, 200)]
    events = Events([TokenTimes(each) for each in times])
    gaps = np.concatenate([np.diff(each) for each in times])
    assert (events.gaps(np.ones(200, dtype=np.bool_)) == gaps).all()
    ends = list(accumulate(max(0, len(each) - 1) for each in times))
    owners = events.gap_owners(np.ones(200, dtype=np.bool_), 7)
    assert owners.tolist() == [int(np.searchsorted(ends, place, side="right")) for place in range(0, gaps.size, 7)]
