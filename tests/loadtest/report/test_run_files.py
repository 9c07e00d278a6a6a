"""Whatever is in a run comes back from its file, whatever is wrong with a file is said with its name; where files may go."""

import copy
import json
import tempfile
from math import inf, nextafter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from loadtest.report.output import OutputError, ready_file, ready_folder, write_whole
from loadtest.report.quantiles import quantile
from loadtest.report.records import ErrorClass, LoadRun, Objective, RequestRecord, measured_window
from loadtest.report.run_file import RunFileError, read_run, write_run
from loadtest.report.trust import cached_share, cautions, failed_share, measured_text
from tests.drawn import drawn

TIMES = st.integers(0, 10**11).map(lambda micros: round(micros / 1e6, 6))  # as exactly as a file keeps them
COUNTS = st.integers(0, 2**31)
TEXTS = st.text(max_size=12)  # surrogates and control characters included
BOUNDS = st.none() | st.floats(1e-3, 1e3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
    max_leaves=6,
)
RECORDS = st.builds(
    RequestRecord,
    index=COUNTS,
    intended=TIMES,
    asked_prompt=COUNTS,
    asked_output=COUNTS,
    klass=TEXTS,
    session=st.none() | TEXTS,
    sent=st.none() | TIMES,
    headers=st.none() | TIMES,
    tokens=st.lists(st.tuples(TIMES, st.integers(0, 3)), max_size=5),
    finished=st.none() | TIMES,
    status=st.none() | st.integers(100, 599),
    finish_reason=st.none() | TEXTS,
    prompt_tokens=st.none() | COUNTS,
    output_tokens=st.none() | COUNTS,
    cached_tokens=st.none() | COUNTS,
    timings=st.none()
    | st.dictionaries(st.sampled_from(["queue_ms", "decode_ms", ""]), TIMES.map(lambda ms: round(ms, 3)), min_size=1),
    error=st.none() | st.sampled_from(ErrorClass),
    detail=st.none() | TEXTS,
    violations=st.lists(TEXTS, max_size=2),
)
RUNS = st.builds(
    LoadRun,
    label=TEXTS,
    target=TEXTS,
    started=st.floats(0, 1e10),
    duration=st.floats(0, 1e6),
    plan=st.dictionaries(TEXTS, JSON, max_size=3),
    records=st.lists(RECORDS, max_size=3),
    objectives=st.dictionaries(TEXTS, st.builds(Objective, BOUNDS, BOUNDS, BOUNDS), max_size=2),
    invalid=st.lists(TEXTS, max_size=2),
    problems=st.lists(TEXTS, max_size=2),
    scraped=st.dictionaries(TEXTS, st.dictionaries(TEXTS, st.floats(0, 1e18)), max_size=2),
    client=st.dictionaries(TEXTS, st.floats(0, 1e9), max_size=2),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@settings(max_examples=drawn(20))
@given(RUNS)
def test_every_run_comes_back_as_it_was_written(folder, run):
    write_run(run, folder / "any.json")
    assert read_run(folder / "any.json") == run


@pytest.fixture(scope="module")
def content(folder):
    """Of the file of a run in which nothing has its default."""
    each = {"klass": "k", "session": "s", "sent": 1.0, "headers": 1.0, "finished": 2.0, "status": 500}
    each |= {"finish_reason": "stop", "prompt_tokens": 3, "output_tokens": 2, "cached_tokens": 1, "violations": ["v"]}
    each |= {"timings": {"queue_ms": 1.0}, "error": ErrorClass.STREAM, "detail": "d", "tokens": [(1.0, 1), (1.5, 2)]}
    records = [RequestRecord(index=n, intended=0.5, asked_prompt=3, asked_output=2, **each) for n in range(3)]
    objectives = {"default": Objective(ttft=1.0)}
    run = LoadRun(
        label="a", target="t", started=1.0, duration=2.0, plan={"seed": 0}, records=records, objectives=objectives
    )
    write_run(run, folder / "whole.json")
    return json.loads((folder / "whole.json").read_text(encoding="utf-8"))


def test_a_file_that_breaks_off_anywhere_is_refused_by_its_name(folder, content):
    text, path = json.dumps(content), folder / "broken off.json"
    for length in range(0, len(text), 5):
        path.write_text(text[:length])
        with pytest.raises(RunFileError, match=r"broken off\.json is not JSON"):
            read_run(path)


@settings(max_examples=drawn(80))
@given(data=st.data(), value=JSON | st.just(10**400), delete=st.booleans())
def test_a_file_in_which_anything_else_stands_is_a_run_or_is_refused_by_its_name(folder, content, data, value, delete):
    wrong = copy.deepcopy(content)
    inside, depth = wrong, data.draw(st.integers(0, 4))
    place = data.draw(st.sampled_from(sorted(inside)))
    while depth and isinstance(inside[place], dict | list) and inside[place]:
        inside, depth = inside[place], depth - 1
        place = data.draw(st.sampled_from(sorted(inside) if isinstance(inside, dict) else range(len(inside))))
    if delete:
        del inside[place]
    else:
        inside[place] = value
    path = folder / "odd.json"
    path.write_text(json.dumps(wrong), encoding="utf-8")
    try:
        assert isinstance(read_run(path), LoadRun)
    except RunFileError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("column", "value"), [("timings", {"queue_ms": [1.0]}), ("event_us", [[10**400], [], []]), ("session", ["one"])]
)
def test_columns_that_do_not_fit_the_others_are_refused(folder, content, column, value):
    wrong = copy.deepcopy(content)
    wrong["records"][column] = value
    (folder / "short.json").write_text(json.dumps(wrong), encoding="utf-8")
    with pytest.raises(RunFileError, match=r"short\.json is no whole run"):
        read_run(folder / "short.json")


def test_what_is_no_text_is_refused_and_what_is_no_file_is_an_os_error(folder):
    (folder / "bytes.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(RunFileError, match=r"bytes\.json is not JSON"):
        read_run(folder / "bytes.json")
    (folder / "deep.json").write_text("[" * 200_000)
    with pytest.raises(RunFileError, match=r"deep\.json is not JSON"):
        read_run(folder / "deep.json")
    for wrong in (folder, folder / "missing.json"):
        with pytest.raises(OSError):
            read_run(wrong)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=40), st.floats(0, 1))
def test_a_quantile_is_numpys_and_between_its_neighbours(values, share):
    found = quantile(values, share)
    assert found == pytest.approx(np.quantile(values, share), rel=1e-9, abs=1e-6)
    assert quantile(reversed(values), share) == found and quantile(iter(values), share) == found
    assert (quantile(values, 0), quantile(values, 1)) == (min(values), max(values))
    assert quantile([], share) == 0


# --- what makes a run's figures doubtful ---


def answered(cached: int | None, prompt: int | None, **more: object) -> RequestRecord:
    return RequestRecord(
        index=0,
        intended=0.0,
        asked_prompt=1,
        asked_output=1,
        **{"finished": 1.0, "cached_tokens": cached, "prompt_tokens": prompt} | more,
    )


def run_of(records: list[RequestRecord], **plan: object) -> LoadRun:
    return LoadRun(label="", target="", started=0.0, duration=1.0, plan=plan, records=records)


def test_a_cache_that_knew_more_than_the_run_could_teach_it_is_said_with_both_shares():
    records = [answered(40, 100), answered(20, 100), answered(None, 100), answered(9, None)]
    records += [answered(99, 100, finished=None), answered(99, 100, error=ErrorClass.STREAM)]
    assert cached_share(run_of(records)) == pytest.approx(0.3), "of whole answers that tell both"
    (said,) = cautions(run_of(records, shareable=0.2))
    assert said.startswith("30.0% of the prompts") and "share only 20.0%" in said
    assert cautions(run_of(records, shareable=0.2801)) == [], "chat templates are shared too"
    assert cautions(run_of(records)) == [] == cautions(run_of([answered(None, 5)], shareable=0.0))
    assert cached_share(run_of([])) is None and cached_share(run_of([answered(0, 0)])) is None


def test_a_simulation_may_have_both_doubts():
    found = cautions(run_of([answered(9, 10)], shareable=0.0, costs_fitted=False, hardware="b200"))
    assert len(found) == 2 and found[0].startswith("b200 has constants")


def test_failed_are_those_of_whom_somebody_waited():
    waited = [answered(0, 1), answered(0, 1, finished=None), answered(0, 1, error=ErrorClass.TIMEOUT), answered(0, 1)]
    ignored = [answered(0, 1, error=error, finished=None) for error in (ErrorClass.LEFT, ErrorClass.UNFIT)]
    assert failed_share(run_of([*waited, *ignored])) == 0.5
    assert failed_share(run_of(ignored)) == 0.0


@given(st.floats(0, 50), st.floats(0, 50), st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_a_request_counts_exactly_if_it_is_due_between_warm_up_and_cool_down(warm_up, cool_down, due):
    records = [RequestRecord(index=n, intended=at, asked_prompt=1, asked_output=1) for n, at in enumerate(due)]
    window = measured_window(warm_up, cool_down, records)
    assert (window is None) == (not warm_up and not cool_down)
    run = run_of(records, measured=window and json.loads(json.dumps(window)))
    until = max(due) - cool_down if cool_down else inf
    kept = [record.index for record in records if warm_up <= record.intended < until]
    assert [record.index for record in run.measured.records] == kept
    assert run.measured.records is run.records or f"{len(kept):,} of {len(due):,} requests" in measured_text(run)
    run.objectives["default"] = Objective()
    assert [record.index for record in records if run.objective(record)] == kept, "what does not count is not judged"


@given(st.floats(0.001, 100), st.floats(0.001, 100))
def test_a_bound_is_met_up_to_its_last_bit(bound, first):
    record = RequestRecord(
        index=0, intended=0.0, asked_prompt=1, asked_output=1, tokens=[(first, 1)], finished=first + 1
    )
    assert Objective(ttft=bound).met_by(record) == (first <= bound)
    assert Objective(ttft=first).met_by(record) and not Objective(ttft=nextafter(first, 0)).met_by(record)
    record.violations.append("an event came twice")
    assert not Objective().met_by(record), "a wrong answer is none"


# --- where reports go ---


def test_only_what_is_there_of_a_report_needs_leave_to_be_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    ready_folder(tmp_path, ("run.json", "report.html"))
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(OutputError, match=r"has a report\.html already: take another folder, or --overwrite it"):
        ready_folder(tmp_path, ("run.json", "report.html"))
    ready_folder(tmp_path, ("run.json", "report.html"), overwrite=True)
    assert {each.name for each in tmp_path.iterdir()} == {"notes.txt", "report.html"}, "nothing is made or taken away"
    ready_folder(tmp_path / "a" / "b", ("run.json",))
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_which_nothing_can_be_made_is_refused_by_its_name(tmp_path, monkeypatch, overwrite):
    (tmp_path / "file").write_text("")
    for wrong, reason in (
        (tmp_path / "file", "it is no folder"),
        (tmp_path / "file" / "below", "Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(OutputError, match=reason) as caught:
            ready_folder(wrong, (), overwrite=overwrite)
        assert f"--output {wrong}" in str(caught.value)

    def denied(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", denied)
    with pytest.raises(OutputError, match="nothing can be written there: Permission denied"):
        ready_folder(tmp_path, (), overwrite=overwrite)
    with pytest.raises(OutputError, match=r"--json .*out\.json: it cannot be written: Permission denied"):
        ready_file(tmp_path / "out.json", "--json")


def test_a_file_that_cannot_be_is_refused_with_its_option(tmp_path):
    ready_file(tmp_path / "new.json", "--json")
    assert list(tmp_path.iterdir()) == []
    for wrong, reason in (
        (tmp_path, "a file is expected, and it is a folder"),
        (tmp_path / "missing" / "x", "No such file or directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(OutputError, match=reason) as caught:
            ready_file(wrong, "--json")
        assert str(caught.value).startswith(f"--json {wrong}")


@settings(max_examples=drawn(20))
@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_file_is_the_old_one_or_the_new_one(folder, old, new):
    assume("\r" not in old + new)  # which text files read as line ends
    path = folder / "text"
    write_whole(path, old)
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, f"{new}\ud800")
    assert path.read_text(encoding="utf-8") == old
    write_whole(path, new)
    assert path.read_text(encoding="utf-8") == new
    assert not path.with_name("text.part").exists()
