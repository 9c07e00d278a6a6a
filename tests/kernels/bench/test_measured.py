"""The page's table of what a GPU has shown: from a results file, and without one."""

import json

import pytest

from kernels.bench import everything, measured
from kernels.bench.measured import HEAD, NOT_MEASURED, RESULTS, ROWS, table, updated
from tests.source_tree import ROOT

LINE, STEP = ROWS[0].name, "decode 32 at 1024"
FIRST = {
    "parts": {
        "kernels": {"figures": {"results": [{"name": LINE, "ratio": 0.9349}, {"name": ROWS[1].name, "error": "none"}]}},
        "steps": {"figures": {"steps": [{"left_out": "decode"}, {"name": STEP, "seconds": 3.0, "floor": 2.0}]}},
    }
}


def measurements(rows):
    """By name."""
    return {
        name: found for name, *_, found in ([cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:])
    }


def test_without_results_nothing_was_measured():
    assert set(measurements(table(None)).values()) == {NOT_MEASURED} and len(table(None)) == len(ROWS) + 2


def test_what_is_not_in_the_results_was_not_measured():
    found = measurements(table(FIRST))
    assert found.pop(LINE) == "0.93" and found.pop(STEP) == "1.50"
    assert set(found.values()) == {NOT_MEASURED}


def test_a_second_try_counts_for_what_it_tried():
    again = {"parts": {"kernels": {"figures": {"results": [{"name": LINE, "ratio": 0.5}]}}, "steps": {"rc": 1}}}
    found = measurements(table(FIRST | {"again": again}))
    assert found[LINE] == "0.50" and found[STEP] == "1.50"


def test_rows_are_of_parts_that_there_are():
    assert {row.part for row in ROWS} <= {part.name for part in everything.PARTS}
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_page_is_up_to_date():
    page, results = (ROOT / "docs" / "gpu.md").read_text(), ROOT / RESULTS
    assert updated(page, json.loads(results.read_text()) if results.exists() else None) == page


def test_only_the_table_is_replaced(tmp_path, monkeypatch, capsys):
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text("\n".join(["before", *HEAD, "| old | | | |", "", "after", ""]))
    results.write_text(json.dumps(FIRST))
    monkeypatch.setattr("sys.argv", ["measured", "--results", str(results), "--into", str(page)])
    assert measured.main() == 0
    assert page.read_text() == "\n".join(["before", *table(FIRST), "", "after", ""])
    monkeypatch.setattr("sys.argv", ["measured", "--results", str(results)])
    assert measured.main() == 0 and capsys.readouterr().out == "\n".join([*table(FIRST), ""])
    with pytest.raises(ValueError, match="not in list"):
        updated("no table", None)
