"""Traces of formats that nobody here knows, by the names of their columns."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.workload.plan import make_plan
from loadtest.workload.sharing import Shared
from loadtest.workload.traces import Trace
from loadtest.workload.traces.problems import TraceError
from loadtest.workload.traces.read import by_columns, read_trace

DATA = Path(__file__).parents[1] / "data"
WHAT = "time=ts:ms,input=usage.in,output=usage.out,session=conv,blocks=kv,block_tokens=16"


def read(folder: Path, text: str, columns: str, *, strict: bool = True) -> Trace:
    path = folder / "trace"
    path.write_text(text, encoding="utf-8")
    return read_trace(path, by_columns(columns), strict=strict)


def arrivals(folder: Path, times: list[str], columns: str = "time=t,input=i,output=o", **more: bool) -> list[float]:
    rows = [f'"{time}",5,1' for time in times]
    return [each.arrival for each in read(folder, "\n".join(["t,i,o", *rows]), columns, **more).requests]


def test_json_lines_with_nested_fields_and_nested_ids(tmp_path):
    rows = [
        {"ts": "1000", "conv": 7, "usage": {"in": "40", "out": 3}, "kv": [["a", ["b"]], [9]]},
        {"ts": 1500.5, "conv": "7", "usage": {"in": 33, "out": 2.0}, "kv": ["a", "b"]},
        {"ts": 3000, "conv": None, "usage": {"in": 20, "out": 1}, "kv": None},
    ]
    first, second, third = read(tmp_path, "\n".join(map(json.dumps, rows)), WHAT).requests
    assert [first.arrival, second.arrival, third.arrival] == [0, 0.5005, 2]
    assert (first.prompt_tokens, first.output_tokens, second.prompt_tokens) == (40, 3, 33)
    assert first.session == second.session == "7" and third.session is None
    assert second.blocks[:2] == first.blocks[:2] and second.blocks[2] not in first.blocks, "the rest is its own"
    assert len(first.blocks) == len(second.blocks) == 3 and third.blocks == () and third.block_tokens == 0


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_with_any_delimiter(tmp_path, delimiter):
    rows = [["when", "in", "out", "model", "ids"], ["2", "40", "3", "x", '"[1, 2, 3]"'], ["1.5", "20", "1", "", "1 2"]]
    text = "\n".join(delimiter.join(row) for row in rows)
    columns = "time=when,input=in,output=out,class=model,blocks=ids,block_tokens=16"
    early, late = read(tmp_path, text, columns).requests
    assert (early.arrival, late.arrival, early.klass, late.klass) == (0, 0.5, "default", "x"), (
        "rows need not be in order"
    )
    assert early.blocks == late.blocks[:2]


@pytest.mark.parametrize(
    ("times", "found"),
    [
        (["2026-01-31 23:59:59", "2026-02-01T00:00:01.5"], [0, 2.5]),
        (["2026-01-31T12:00:00+01:00", "2026-01-31T11:00:03Z"], [0, 3]),
        (["23:59:58", "23:59:59.25", "00:00:01", "00:00:00"], [0, 1.25, 2, 3]),
        (["12:00:05", "12:00:01"], [0, 4]),
        (["10", " 7.5"], [0, 2.5]),
    ],
)
def test_times_as_texts(tmp_path, times, found):
    assert arrivals(tmp_path, times) == pytest.approx(found)


def test_a_unit_that_is_not_said_is_asked_for_and_not_guessed(tmp_path):
    stamps = ["1790000000123", "1790000000623"]
    with pytest.raises(TraceError, match="these are no seconds; write time=t:ms"):
        arrivals(tmp_path, stamps)
    assert arrivals(tmp_path, stamps, "time=t:ms,input=i,output=o") == pytest.approx([0, 0.5])
    assert arrivals(tmp_path, ["1790000000", "1790000002"]) == [0, 2]


def test_without_times_arrivals_are_drawn(tmp_path):
    assert not read(tmp_path, "i,o\n5,1\n6,2", "input=i,output=o").timed


@given(
    st.recursive(st.integers(0, 9), lambda inside: st.lists(inside, max_size=4), max_leaves=12).filter(
        lambda ids: ids != []
    )
)
def test_nested_ids_are_taken_depth_first(tmp_path_factory, ids):
    def leaves(value):
        return [each for part in value for each in leaves(part)] if isinstance(value, list) else [value]

    flat = leaves(ids)
    rows = [{"i": 16 * max(1, len(flat)), "o": 1, "b": each} for each in (ids, flat)]
    if not flat:
        return
    folder = tmp_path_factory.mktemp("t")
    columns = "input=i,output=o,blocks=b,block_tokens=16"
    nested, plain = read(folder, "\n".join(map(json.dumps, rows)), columns).requests
    assert nested.blocks == plain.blocks and len(nested.blocks) == len(flat)


def test_a_known_trace_under_other_names_shares_and_measures_the_same(tmp_path):
    """Mooncake's rows with everything renamed, times as texts in another order, ids as texts in nested lists."""
    rows = [json.loads(line) for line in (DATA / "mooncake.jsonl").read_text().splitlines()]
    renamed = [
        {
            "at": f"{row['timestamp']}",
            "len": {"p": str(row["input_length"]), "a": row["output_length"]},
            "h": [[f"x{number}"] for number in row["hash_ids"]],
        }
        for row in rows
    ]
    columns = "time=at:ms,input=len.p,output=len.a,blocks=h,block_tokens=512"
    found = make_plan(read(tmp_path, "\n".join(map(json.dumps, renamed)), columns)).requests
    wanted = make_plan(read_trace(DATA / "mooncake.jsonl")).requests
    assert [(e.intended, e.prompt_tokens, e.output_tokens) for e in found] == [
        (e.intended, e.prompt_tokens, e.output_tokens) for e in wanted
    ]
    ours, theirs = Shared(0), Shared(0)
    assert [ours.tokens(e, e.prompt_tokens) for e in found] == [theirs.tokens(e, e.prompt_tokens) for e in wanted]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("input=i", "has no output"),
        ("input=i,output=o,blocks=b", "belong together"),
        ("input=i,output=o,blocks=b,block_tokens=x", "no number of tokens"),
        ("input=i,output=o,prompt=p", "names none of time, input"),
        ("input=i,output=o,input=j", "twice"),
        ("time=t:min,input=i,output=o", "no unit of time: s, ms, us, ns"),
        ("input=missing,output=o", "no column 'missing'; it has t, i, o"),
    ],
)
def test_columns_that_say_nothing_are_refused(tmp_path, columns, said):
    with pytest.raises(TraceError) as caught:
        read(tmp_path, "t,i,o\n1,5,1", columns)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("x,5,1", "t is 'x', neither a number nor a time as 2026"),
        ("1,5", "has 2 columns instead of 3"),
        ("1,0,1", "i is 0; it must be at least 1"),
        ("1,true,1", "i is 'true', not a number"),
    ],
)
def test_a_row_that_cannot_be_read_is_left_out_with_its_reason(tmp_path, row, said):
    found = read(tmp_path, f"t,i,o\n1,5,1\n{row}", "time=t,input=i,output=o", strict=False)
    assert len(found.requests) == 1 and said in found.problems[0].text and found.problems[0].line == 3


@pytest.mark.parametrize(
    ("ids", "said"),
    [([1, 2, 3], "3 ids; 20 tokens are 2 blocks"), ([], "have 1 whole blocks"), ([True, 2], "true, which is no id")],
)
def test_ids_have_to_fit_the_prompt(tmp_path, ids, said):
    row = {"i": 20, "o": 1, "b": ids}
    with pytest.raises(TraceError) as caught:
        read(tmp_path, json.dumps(row), "input=i,output=o,blocks=b,block_tokens=16")
    assert said in str(caught.value)


def test_tenants_and_priorities_are_read_from_texts_and_numbers(tmp_path):
    text = "t,i,o,who,p\n1,5,1,ada,-3\n2,5,1,,\n3,5,1,bob,0"
    columns = "time=t,input=i,output=o,tenant=who,priority=p"
    found = read(tmp_path, text, columns).requests
    assert [(each.tenant, each.klass, each.priority) for each in found] == [
        ("ada", "ada", -3),
        (None, "default", 0),
        ("bob", "bob", 0),
    ]
    with pytest.raises(TraceError, match=r"p is 1\.5, not a whole number"):
        read(tmp_path, "i,o,p\n1,1,1.5", "input=i,output=o,priority=p")
    row = {"i": 5, "o": 1, "who": {"id": 4}, "p": -1}
    (one,) = read(tmp_path, json.dumps(row), "input=i,output=o,tenant=who.id,priority=p").requests
    assert (one.tenant, one.priority) == ("4", -1)
