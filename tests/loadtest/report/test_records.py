"""A run's file."""

import json

import pytest

from loadtest.report.records import SCHEMA, ErrorClass, LoadRun, Objective, RequestRecord, unfit
from loadtest.report.run_file import RunFileError, read_run, write_run


def run() -> LoadRun:
    records = [
        RequestRecord(index=0, intended=0.5, asked_prompt=3, asked_output=2, tokens=[(1.0, 1), (1.5, 1)], finished=1.6),
        RequestRecord(index=1, intended=1.0, asked_prompt=3, asked_output=2, error=ErrorClass.STATUS, status=503),
    ]
    objectives = {"default": Objective(ttft=1.0)}
    return LoadRun(
        label="é", target="t", started=1.0, duration=2.0, plan={"seed": 0}, records=records, objectives=objectives
    )


def test_what_is_written_is_read_and_is_in_columns(tmp_path):
    path = tmp_path / "run.json"
    write_run(run(), path)
    assert read_run(path) == run()
    columns = json.loads(path.read_text(encoding="utf-8"))["records"]
    assert columns["event_us"] == [[1_000_000, 500_000], []] and columns["event_tokens"] == [1, 1]
    assert columns["intended"] == [0.5, 1.0] and columns["status"] == [None, 503]
    assert "klass" not in columns, "every record has the default"
    assert [each.name for each in tmp_path.iterdir()] == ["run.json"]


def test_a_run_of_ten_thousand_answers_of_two_hundred_tokens_is_small(tmp_path):
    """54 MB as a list of objects with every event as a pair: a hundredth of it here."""
    tokens = [(0.1 + 0.0123456789 * place, 1) for place in range(200)]
    records = [
        RequestRecord(index=index, intended=0.01 * index, asked_prompt=3, asked_output=200, tokens=tokens, finished=3.0)
        for index in range(100)
    ]
    path = tmp_path / "run.json"
    write_run(LoadRun(label="", target="", started=0.0, duration=3.0, plan={}, records=records), path)
    assert path.stat().st_size < 160_000
    assert read_run(path).records[7].tokens == [(pytest.approx(at, abs=1e-6), 1) for at, _ in tokens]


def test_unknown_fields_are_ignored(tmp_path):
    path = tmp_path / "run.json"
    write_run(run(), path)
    content = json.loads(path.read_text(encoding="utf-8")) | {"later": 1}
    content["records"]["later"] = [2, 3]
    path.write_text(json.dumps(content))
    assert read_run(path) == run()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "schema is None"),
        ('{"schema": "headrace.loadtest/1", "records": []}', SCHEMA),
        (json.dumps({"schema": SCHEMA, "label": "x"}), "no whole run: KeyError: 'records'"),
        (
            json.dumps({"schema": SCHEMA, "objectives": {}, "records": {"event_us": [], "event_tokens": []}}),
            "TypeError",
        ),
    ],
)
def test_what_is_no_run_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "some.json"
    path.write_text(text)
    with pytest.raises(RunFileError, match=r"some\.json") as caught:
        read_run(path)
    assert said in str(caught.value)


def test_only_what_is_longer_than_the_context_does_not_fit():
    record = RequestRecord(index=0, intended=0.0, asked_prompt=60, asked_output=40)
    assert not unfit(record, 100) and record.fits and record.error is None
    assert unfit(record, 99) and not record.fits and "60 + 40 tokens are more than the context of 99" in record.detail
    assert (
        LoadRun(
            label="", target="", started=0, duration=0, plan={}, records=[], objectives={"default": Objective()}
        ).objective(record)
        is None
    )
