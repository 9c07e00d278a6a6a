"""A run's JSON."""

import json
from dataclasses import asdict

import pytest

from loadtest.report.records import SCHEMA, ErrorClass, LoadRun, Objective, RequestRecord


def run() -> LoadRun:
    records = [
        RequestRecord(index=0, intended=0.5, asked_prompt=3, asked_output=2, tokens=[(1.0, 1), (1.5, 1)], finished=1.6),
        RequestRecord(index=1, intended=1.0, asked_prompt=3, asked_output=2, error=ErrorClass.STATUS, status=503),
    ]
    objectives = {"default": Objective(ttft=1.0)}
    return LoadRun(
        label="é", target="t", started=1.0, duration=2.0, plan={"seed": 0}, records=records, objectives=objectives
    )


def test_what_is_written_is_read_and_is_every_field(tmp_path):
    path = tmp_path / "run.json"
    run().write(path)
    assert LoadRun.read(path) == run()
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(asdict(run())))


def test_unknown_fields_are_ignored_and_other_schemas_refused(tmp_path):
    path = tmp_path / "run.json"
    content = asdict(run()) | {"later": 1}
    content["records"][0]["later"] = 2
    path.write_text(json.dumps(content))
    assert LoadRun.read(path) == run()
    path.write_text(json.dumps(content | {"schema": "headrace.loadtest/9"}))
    with pytest.raises(ValueError, match=SCHEMA):
        LoadRun.read(path)
