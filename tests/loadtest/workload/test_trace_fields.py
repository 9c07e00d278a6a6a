"""Each field of each format takes the values it may have and no other; a refusal names file, line, field and value."""

import csv
import io
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.workload.traces import TraceRequest, mooncake, own, prompts_jsonl, sharegpt
from loadtest.workload.traces.problems import (
    BrokenRow,
    Problems,
    TraceError,
    cells,
    number,
    seconds,
    session_of,
    shown,
    tokens,
)
from loadtest.workload.traces.read import FORMATS, read_trace

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
COUNTS = st.integers(1, 10**6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
MOONCAKE = {"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [0, 7]}
OWN = {
    "at": 1.5,
    "prompt_tokens": 70,
    "output_tokens": 2,
    "class": "a",
    "session": "s",
    "blocks": [3, 4, 5],
    "block_tokens": 32,
}
SHAREGPT = {"id": "a", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
PROMPT = {"prompt": "a", "category": "b", "output_tokens": 4}
BURSTGPT = [
    "Timestamp",
    "Session ID",
    "Elapsed time",
    "Model",
    "Request tokens",
    "Response tokens",
    "Total tokens",
    "Log Type",
]
AZURE = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
HEADER = {"format": own.VERSION, "tick": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("traces")


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(header, *rows, quoted=csv.QUOTE_MINIMAL):
    text = io.StringIO()
    csv.writer(text, quoting=quoted, lineterminator="\r\n").writerows([header, *rows])
    return text.getvalue()


def read(folder, text, format=None, **more):
    path = folder / "a.trace"
    path.write_text(text, encoding="utf-8", newline="")
    return read_trace(path, format, **more)


def refusal(folder, text, format=None):
    """The one problem of a trace with a good row before a broken one; strict reading raises the same words."""
    (problem,) = (row.text for row in read(folder, text, format).problems)
    with pytest.raises(TraceError) as raised:
        read(folder, text, format, strict=True)
    assert str(raised.value) == problem
    return problem


BROKEN = [
    (mooncake, MOONCAKE, "hash_ids", [0, True], "hash_ids[1] is true"),
    (mooncake, MOONCAKE, "hash_ids", [False, 1], "hash_ids[0] is false"),
    (mooncake, MOONCAKE, "hash_ids", [0, -1], "hash_ids[1] is -1"),
    (mooncake, MOONCAKE, "hash_ids", [0, 1.0], "hash_ids[1] is 1.0"),
    (mooncake, MOONCAKE, "hash_ids", [0, "1"], "hash_ids[1] is '1'"),
    (mooncake, MOONCAKE, "hash_ids", [0, None], "hash_ids[1] is null"),
    (mooncake, MOONCAKE, "hash_ids", [[0], 1], "hash_ids[0] is [0]"),
    (mooncake, MOONCAKE, "hash_ids", {"0": 1}, 'hash_ids is {"0": 1}'),
    (mooncake, MOONCAKE, "hash_ids", "01", "hash_ids is '01'"),
    (mooncake, MOONCAKE, "hash_ids", 3, "hash_ids is 3"),
    (mooncake, MOONCAKE, "hash_ids", [], "hash_ids has 0 ids; 600 tokens are 2 blocks"),
    (mooncake, MOONCAKE, "hash_ids", None, "hash_ids is missing"),
    (mooncake, MOONCAKE, "input_length", True, "input_length is true"),
    (mooncake, MOONCAKE, "input_length", "600", "input_length is '600'"),
    (mooncake, MOONCAKE, "input_length", 0, "input_length is 0"),
    (mooncake, MOONCAKE, "input_length", 600.5, "input_length is 600.5"),
    (mooncake, MOONCAKE, "input_length", 10**400, "input_length is 1000"),
    (mooncake, MOONCAKE, "output_length", float("inf"), "output_length is Infinity"),
    (mooncake, MOONCAKE, "output_length", float("nan"), "output_length is NaN"),
    (mooncake, MOONCAKE, "output_length", 2**31, "output_length is 2147483648"),
    (mooncake, MOONCAKE, "timestamp", True, "timestamp is true"),
    (mooncake, MOONCAKE, "timestamp", -1, "timestamp is -1"),
    (mooncake, MOONCAKE, "timestamp", "0", "timestamp is '0'"),
    (mooncake, MOONCAKE, "timestamp", -(10**400), "timestamp is -1000"),
    (own, OWN, "at", "1.5", "at is '1.5'"),
    (own, OWN, "at", False, "at is false"),
    (own, OWN, "prompt_tokens", True, "prompt_tokens is true"),
    (own, OWN, "output_tokens", "2", "output_tokens is '2'"),
    (own, OWN, "class", 5, "class is 5"),
    (own, OWN, "class", ["a"], 'class is ["a"]'),
    (own, OWN, "session", 1, "session is 1"),
    (own, OWN, "session", True, "session is true"),
    (own, OWN, "prompt", 5, "prompt is 5"),
    (own, OWN, "prompt", "x", "prompt_tokens is 70 beside a prompt"),
    (own, OWN, "blocks", [3, True, 5], "blocks[1] is true"),
    (own, OWN, "blocks", [3, -4, 5], "blocks[1] is -4"),
    (own, OWN, "blocks", [3, 4.0, 5], "blocks[1] is 4.0"),
    (own, OWN, "blocks", [3, 4], "blocks has 2 ids; 70 tokens are 3 blocks of 32"),
    (own, OWN, "blocks", None, "block_tokens is 32 without blocks"),
    (own, OWN, "block_tokens", None, "block_tokens is missing"),
    (own, OWN, "block_tokens", True, "block_tokens is true"),
    (own, OWN, "block_tokens", 0, "block_tokens is 0"),
    (own, OWN, "tokens", 3, "unknown fields tokens (3)"),
    (sharegpt, SHAREGPT, "id", True, "id is true"),
    (sharegpt, SHAREGPT, "id", 1.5, "id is 1.5"),
    (sharegpt, SHAREGPT, "id", ["a"], 'id is ["a"]'),
    (sharegpt, SHAREGPT, "id", float("nan"), "id is NaN"),
    (sharegpt, SHAREGPT, "conversations", "Hi", "conversations is 'Hi'"),
    (sharegpt, SHAREGPT, "conversations", None, "conversations is missing"),
    (sharegpt, SHAREGPT, "conversations", [], "conversations is []"),
    (sharegpt, SHAREGPT, "conversations", ["Hi"], "conversations[0] is 'Hi'"),
    (
        sharegpt,
        SHAREGPT,
        "conversations",
        [{"from": "gpt", "value": 5}],
        'conversations[0] is {"from": "gpt", "value": 5}',
    ),
    (prompts_jsonl, PROMPT, "prompt", 5, "prompt is 5"),
    (prompts_jsonl, PROMPT, "prompt", ["a"], 'prompt is ["a"]'),
    (prompts_jsonl, PROMPT, "prompt", "", "no prompt"),
    (prompts_jsonl, PROMPT, "turns", "a", "turns is 'a'"),
    (prompts_jsonl, PROMPT, "turns", ["a", ""], 'turns is ["a", ""]'),
    (prompts_jsonl, PROMPT, "turns", {"0": "a"}, 'turns is {"0": "a"}'),
    (prompts_jsonl, PROMPT, "category", 5, "category is 5"),
    (prompts_jsonl, PROMPT, "output_tokens", True, "output_tokens is true"),
    (prompts_jsonl, PROMPT, "output_tokens", "4", "output_tokens is '4'"),
    (prompts_jsonl, PROMPT, "output_tokens", 0, "output_tokens is 0"),
]


@pytest.mark.parametrize(
    ("format", "row", "field", "value", "said"), BROKEN, ids=[f"{case[0].NAME}-{case[4][:30]}" for case in BROKEN]
)
def test_a_refusal_names_file_line_field_and_value(folder, format, row, field, value, said):
    head = [HEADER] if format is own else []
    problem = refusal(folder, lines(*head, row, row | {field: value}), format.NAME)
    assert problem.startswith(f"a.trace, line {len(head) + 2}: ") and said in problem
    assert len(problem) < 250


@pytest.mark.parametrize("format", [mooncake, own, sharegpt, prompts_jsonl])
@pytest.mark.parametrize("line", ["[" * 10**5, "1" * 5000, "{", "null", "[1]", '"text"', "{'a': 1}", "\x00"])
def test_a_line_that_is_no_json_object_is_refused(folder, format, line):
    good = {"mooncake": MOONCAKE, "headrace": OWN, "sharegpt": SHAREGPT, "prompts": PROMPT}[format.NAME]
    head = [HEADER] if format is own else []
    problem = refusal(folder, lines(*head, good) + line + "\n", format.NAME)
    assert problem.startswith(f"a.trace, line {len(head) + 2}: ") and "JSON" in problem


@pytest.mark.parametrize("row", [MOONCAKE, OWN, SHAREGPT, PROMPT])
@given(data=st.data(), value=JSON)
def test_whatever_stands_in_a_field_the_row_is_read_or_refused(folder, row, data, value):
    format = {0: "mooncake", 1: "headrace", 2: "sharegpt", 3: "prompts"}[[MOONCAKE, OWN, SHAREGPT, PROMPT].index(row)]
    name = data.draw(st.sampled_from([*row, "turns", "prompt", "max_tokens"]))
    head = [HEADER] if format == "headrace" else []
    trace = read(folder, lines(*head, row, row | {name: value}), format)
    assert len(trace.requests) > 1 or len(trace.problems) == 1
    for request in trace.requests:
        assert type(request.output_tokens) is int and 1 <= request.output_tokens < 2**31
        assert request.prompt is not None or 1 <= request.prompt_tokens < 2**31
        assert all(type(block) is int and block >= 0 for block in request.blocks)
        assert isinstance(request.klass, str) and isinstance(request.session, str | None)
        assert 0 <= request.arrival < float("inf")


@given(
    st.lists(
        st.builds(
            TraceRequest,
            line=st.just(0),
            arrival=st.floats(0, 1e9),
            prompt_tokens=COUNTS,
            output_tokens=COUNTS,
            klass=TEXT.filter(bool),
            session=st.none() | TEXT,
        ),
        min_size=1,
        max_size=6,
    ),
    st.floats(0, 10),
)
def test_what_is_written_is_read(folder, requests, tick):
    own.write(folder / "own", requests, tick=tick)
    problems = Problems("own", strict=True)
    again = list(own.read(folder / "own", problems))
    assert [each.line for each in again] == list(range(2, len(requests) + 2))
    for before, after in zip(requests, again, strict=True):
        assert (before.arrival, before.prompt_tokens, before.output_tokens) == (
            after.arrival,
            after.prompt_tokens,
            after.output_tokens,
        )
        assert (before.klass, before.session) == (after.klass, after.session)
    trace = read_trace(folder / "own")
    assert trace.tick == tick
    assert [each.arrival for each in trace.requests] == sorted(
        each.arrival - min(r.arrival for r in requests) for each in requests
    )


@pytest.mark.parametrize("quoted", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@given(
    rows=st.lists(
        st.tuples(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)), COUNTS, COUNTS), min_size=1, max_size=5
    )
)
def test_azure_rows_may_be_quoted(folder, quoted, rows):
    text = table(AZURE, *((f"{at:%Y-%m-%d %H:%M:%S.%f}0", *counts) for at, *counts in rows), quoted=quoted)
    trace = read(folder, text, strict=True)
    assert trace.format == "azure"
    rows.sort(key=lambda row: row[0])
    assert [(each.prompt_tokens, each.output_tokens) for each in trace.requests] == [
        tuple(counts) for _, *counts in rows
    ]
    stamps = [at.replace(tzinfo=UTC).timestamp() for at, *_ in rows]
    assert [each.arrival for each in trace.requests] == pytest.approx([stamp - stamps[0] for stamp in stamps], abs=1e-5)


@pytest.mark.parametrize("quoted", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 99), COUNTS, COUNTS, st.sampled_from(["GPT-4", 'a "b", c'])),
        min_size=1,
        max_size=6,
    ),
    pandas=st.booleans(),
)
def test_burstgpt_rows_may_be_quoted_and_sessions_are_brought_together(folder, quoted, rows, pandas):
    body = [
        [at, f"{session}.0" if pandas and place % 2 else session, "", model, prompt, output, prompt + output, "API log"]
        for place, (at, session, prompt, output, model) in enumerate(rows)
    ]
    trace = read(folder, table(BURSTGPT, *body, quoted=quoted), strict=True)
    assert trace.format == "burstgpt"
    found = {request.line: request for request in trace.requests}
    for line, (_, session, prompt, output, model) in enumerate(rows, 2):
        expected = (str(session), prompt, output, model)
        assert (
            found[line].session,
            found[line].prompt_tokens,
            found[line].output_tokens,
            found[line].klass,
        ) == expected


@pytest.mark.parametrize(
    ("cell", "name", "value"),
    [
        (0, "TIMESTAMP", ""),
        (0, "TIMESTAMP", "2023-11-16"),
        (0, "TIMESTAMP", "2023-11-16 25:00:00"),
        (0, "TIMESTAMP", "2023-02-30 18:15:46"),
        (0, "TIMESTAMP", "٢٠٢٣-11-16 18:15:46"),
        (1, "ContextTokens", ""),
        (1, "ContextTokens", "1_000"),
        (1, "ContextTokens", " 5"),
        (1, "ContextTokens", "nan"),
        (1, "ContextTokens", "0x10"),
        (1, "ContextTokens", "٥"),
        (2, "GeneratedTokens", "0"),
        (2, "GeneratedTokens", "-3"),
        (2, "GeneratedTokens", "1.5"),
        (2, "GeneratedTokens", "inf"),
        (2, "GeneratedTokens", "1e10"),
        (2, "GeneratedTokens", "True"),
    ],
)
def test_a_cell_that_is_wrong_is_named(folder, cell, name, value):
    good = ["2023-11-16 18:15:46.6805900", "374", "44"]
    bad = [*good[:cell], value, *good[cell + 1 :]]
    problem = refusal(folder, table(AZURE, good, bad, quoted=csv.QUOTE_ALL))
    assert problem.startswith(f"a.trace, line 3: {name} is ")
    assert value.lstrip("+") in problem or float(value) == float(problem.split(" is ")[1].split(";")[0])


@pytest.mark.parametrize("row", ['"a,1,2', '"a"b,1,2', '"2023-11-16 18:15:46"" ,1,2', "x" * 200_000 + ",1,2"])
def test_quotes_that_do_not_end_are_a_broken_row(folder, row):
    text = table(AZURE, ["2023-11-16 18:15:46", 1, 2]) + row + "\r\n"
    problem = refusal(folder, text)
    assert problem.startswith("a.trace, line 3: ") and ("CSV" in problem or "TIMESTAMP" in problem)


@pytest.mark.parametrize("name", ["azure", "burstgpt", "headrace"])
@pytest.mark.parametrize(
    "first", ["", "\n", "a,b\n", '"', "[]\n", "5\n", '{"format": 5}\n', json.dumps(MOONCAKE) + "\n"]
)
def test_a_file_without_the_formats_header_is_refused(folder, name, first):
    with pytest.raises(TraceError, match=r"a\.trace"):
        read(folder, first, name)


@pytest.mark.parametrize("tick", [-1, "1", True, None, [], float("nan"), 10**400])
def test_a_tick_is_a_time(folder, tick):
    with pytest.raises(TraceError, match=r"a\.trace, line 1, the header: tick is "):
        read(folder, lines(HEADER | {"tick": tick}, OWN))


@given(st.text(max_size=200), st.sampled_from([None, *FORMATS]))
def test_no_file_makes_a_reader_fail_in_another_way(folder, text, format):
    text = text.encode(errors="surrogatepass").decode(errors="surrogateescape").encode(errors="surrogateescape")
    (folder / "any").write_bytes(text)
    try:
        assert read_trace(folder / "any", format).requests
    except TraceError as error:
        assert "any" in str(error)


@pytest.mark.parametrize(
    ("value", "session"),
    [
        (1, "1"),
        (1.0, "1"),
        ("1", "1"),
        ("1.0", "1"),
        ("1.", "1"),
        ("1.000", "1"),
        (0, "0"),
        (0.0, "0"),
        (-3.0, "-3"),
        (2.0**60, str(2**60)),
        ("1.5", "1.5"),
        ("v1.0", "v1.0"),
        ("1.0.0", "1.0.0"),
        ("1722ac82-0a46", "1722ac82-0a46"),
        ("", None),
        (None, None),
    ],
)
def test_one_session_written_in_two_ways_is_one(value, session):
    assert session_of(value, "id") == session


def test_talks_with_whole_ids_keep_them(folder):
    talks = [SHAREGPT | {"id": id} for id in (0, 1, 1.0, "1", None)]
    assert [each.session for each in read(folder, lines(*talks)).requests] == ["0", "1", "1", "1", "line 5"]


def test_what_a_prompt_may_be_and_how_long_its_answer_is(folder):
    rows = [
        {"prompt": "a"},
        {"question": "a", "max_tokens": 7},
        {"text": "a", "max_tokens": 7, "output_tokens": 8},
        {"instruction": "a", "output_tokens": None, "max_tokens": 7.0},
        {"turns": ["a", "b"], "prompt": "c"},
        {"turns": [], "prompt": "c", "category": None},
    ]
    found = read(folder, lines(*rows), strict=True).requests
    assert [each.output_tokens for each in found] == [128, 7, 8, 7, 128, 128, 128]
    assert [each.prompt for each in found] == ["a", "a", "a", "a", "a", "a\n\nb", "c"]
    assert [each.session for each in found] == [None, None, None, None, "line 5", "line 5", None]


@given(st.floats(0, 1e15) | st.integers(0, 10**15))
def test_times_are_what_is_written(value):
    assert seconds(value, "at") == value
    assert number(repr(value), "at") == value


@given(st.integers(1, 2**31 - 1))
def test_counts_may_be_written_as_pandas_does(count):
    assert tokens(count, "n") == tokens(float(count), "n") == tokens(number(f"{count}.0", "n"), "n") == count


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=5
    )
)
def test_cells_come_back_as_they_were_written(values):
    line = table(values, quoted=csv.QUOTE_ALL).rstrip("\r\n")
    assert cells(line) == values


@given(JSON)
def test_a_value_is_shown_in_a_few_words(value):
    assert len(shown(value)) <= 63


def test_values_too_large_to_be_shown_are_not():
    deep: list[object] = []
    for _ in range(10**5):
        deep = [deep]
    assert shown(deep) == "a list too large to be shown"
    assert shown(10**5000) == "a int too large to be shown"
    with pytest.raises(BrokenRow, match="too large"):
        seconds(10**5000, "at")
