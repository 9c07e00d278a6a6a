"""From a body to a record: what is right is read right, each fault is counted once, and nothing that comes makes the judge fail."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client.judge import Expected, Raw, judge, miscounts
from loadtest.client.streams import StreamedAnswer, StreamReader, error_message, json_value, whole_answer
from loadtest.report.metrics import summarize
from loadtest.report.records import ErrorClass, LoadRun, RequestRecord

USAGE = {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 2}}
TIMINGS = {"queue_ms": 1, "prefill_ms": 2.5, "decode_ms": 3}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def chunks(kind="completion"):
    """A plain valid stream of three tokens, with usage, as docs/sse.md has it."""
    name = "chat.completion.chunk" if kind == "chat" else "text_completion"
    head = {"id": "r-1", "object": name, "created": 1790000000, "model": "m"}

    def said(text, reason=None):
        body = {"delta": {"content": text} if text else {}} if kind == "chat" else {"text": text}
        return {"index": 0, **body, "finish_reason": reason}

    role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    choices = [role] if kind == "chat" else []
    choices += [said("a"), said("b"), said("c"), said("", "length")]
    made = [head | {"choices": [choice], "usage": None} for choice in choices]
    made[-1]["timings"] = TIMINGS
    return [*made, head | {"choices": [], "usage": USAGE}]


def body_of(parts, end="data: [DONE]\n\n", separator="\n\n"):
    return ("".join(f"data: {json.dumps(part)}{separator}" for part in parts) + end).encode()


def judged(body, *, own=False, kind="completion", error=None, status=200, only_length=True):
    record = RequestRecord(index=0, intended=0.0, asked_prompt=4, asked_output=3, sent=0.0, headers=0.1, finished=9.0)
    record.status, record.error = status, error
    ends = list(range(1, len(body) + 1))
    raw = Raw(body, [end / 1000 for end in ends], ends)
    expected = Expected(kind=kind, own_grammar=own, prompt_tokens=4, output_tokens=3, only_length=only_length)
    return record, judge(record, raw, expected)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_whole_answer_has_its_tokens_counts_and_times(kind, own):
    body = body_of(chunks(kind))
    record, answer = judged(body, own=own, kind=kind)
    assert (record.error, record.violations, record.finish_reason) == (None, [], "length")
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (4, 3, 2)
    assert record.timings == TIMINGS
    assert answer.text == "abc"
    assert [count for _, count in record.tokens] == [1, 1, 1]
    assert record.finished == answer.done == len(body) / 1000  # not when the connection let go


@pytest.mark.parametrize(
    "separator", ["\r\n\r\n", "\r\r", "\n\r\n", "\r\n\n", "\n\n: comment\n\n", "\n\ndata:\n\n", "\nid: 4\n\n"]
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_another_servers_stream_may_be_written_in_any_way_that_is_valid(separator, mark):
    body = body_of(chunks(), end=f"data: [DONE]{separator}", separator=separator)
    record, answer = judged(mark.encode() + body)
    assert (record.violations, record.error, answer.text) == ([], None, "abc")
    record, _ = judged(mark.encode() + body, own=True)
    assert record.violations  # our own must be written as docs/sse.md says


GONE = {"message": "gone"}
OURS = {"message": "gone", "type": "server_error", "param": None, "code": "engine_died"}
FAULTS = [
    # What the body is, the error, and the one violation; None for none.
    ("nothing", b"", "without [DONE]", None),
    ("no end", body_of(chunks(), end=""), "without [DONE]", None),
    ("an end without a blank line", body_of(chunks(), end="data: [DONE]\n"), "without [DONE]", None),
    ("cut inside an event", body_of(chunks())[:-40], "without [DONE]", None),
    ("an error event", body_of([*chunks()[:2], {"error": GONE}], end=""), "gone", None),
    ("no reason", body_of([*chunks()[:3], chunks()[-1]]), None, "no finish reason"),
    ("no usage", body_of(chunks()[:-1]), None, "no usage"),
    (
        "a sum",
        body_of([*chunks()[:-1], chunks()[-1] | {"usage": USAGE | {"total_tokens": 8}}]),
        None,
        "does not add up",
    ),
    ("after the end", body_of(chunks(), end="data: [DONE]\n\ndata: {}\n\n"), None, "an event after [DONE]"),
    ("a second end", body_of(chunks(), end="data: [DONE]\n\ndata: [DONE]\n\n"), None, "an event after [DONE]"),
    ("no JSON", body_of(chunks(), end="data: {\n\ndata: [DONE]\n\n"), None, "not a JSON object"),
    ("an array", body_of(chunks(), end="data: []\n\ndata: [DONE]\n\n"), None, "not a JSON object"),
    ("NaN", body_of(chunks(), end='data: {"x": NaN}\n\ndata: [DONE]\n\n'), None, "not a JSON object"),
    ("depth", body_of(chunks(), end="data: " + "[" * 10**5 + "\n\ndata: [DONE]\n\n"), None, "not a JSON object"),
    ("digits", body_of(chunks(), end="data: " + "1" * 10**4 + "\n\ndata: [DONE]\n\n"), None, "not a JSON object"),
    ("not UTF-8", body_of(chunks(), end="") + b'data: {"x": "\xff"}\n\ndata: [DONE]\n\n', None, "not a JSON object"),
]


@pytest.mark.parametrize(
    ("body", "error", "violation"), [case[1:] for case in FAULTS], ids=[case[0] for case in FAULTS]
)
def test_one_fault_is_counted_once(body, error, violation):
    record, _ = judged(
        body.replace(json.dumps({"error": GONE}).encode(), json.dumps({"error": OURS}).encode()), own=True
    )
    assert (record.error is not None) == (error is not None)
    assert len(record.violations) + (record.error is not None) == 1, record.violations
    record, _ = judged(body)
    assert (record.error is ErrorClass.STREAM and error in record.detail) if error else record.error is None
    assert len(record.violations) == (violation is not None), record.violations
    assert violation is None or violation in record.violations[0]


def test_others_may_end_a_stream_after_an_error_event():
    record, _ = judged(body_of([*chunks()[:2], {"error": GONE}]))
    assert (record.error, record.detail, record.violations) == (ErrorClass.STREAM, "gone", [])


@pytest.mark.parametrize("error", [None, ErrorClass.STREAM, ErrorClass.STALL, ErrorClass.TIMEOUT, ErrorClass.CLIENT])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("length", [0, 1, 90, 333, -30, -15, -1])
def test_a_stream_that_broke_off_anywhere_has_an_error_and_no_violation(error, own, length):
    whole = body_of(chunks("chat"))
    record, answer = judged(whole[:length], own=own, kind="chat", error=error)
    assert record.error is (error or ErrorClass.STREAM)
    assert record.violations == []
    assert answer.text == "abc"[: len(answer.texts)]


def test_our_own_stream_that_is_whole_may_have_nothing_behind_its_end():
    record, _ = judged(body_of(chunks(), end="data: [DONE]\n\n: b"), own=True)
    assert record.error is None and record.violations == ["nothing follows the terminal event"]
    record, _ = judged(body_of(chunks(), end="data: [DONE]\n\n: b"))
    assert record.error is None and record.violations == []  # a reader discards it


def places(value, path=()):
    """The paths of all values inside `value`."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def put(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = put(copy[path[0]], path[1:], new)
    return copy


@given(st.data(), st.sampled_from(["chat", "completion"]), st.booleans(), JSON)
def test_whatever_stands_where_in_a_stream_the_report_is_made(data, kind, own, strange):
    parts = chunks(kind)
    path = data.draw(st.sampled_from(list(places(parts))).filter(bool))
    record, _ = judged(body_of(put(parts, path, strange)), own=own, kind=kind)
    run = LoadRun(label="x", target="x", started=0.0, duration=1.0, plan={}, records=[record])
    assert summarize(run).requests == 1
    json.dumps(record.violations, allow_nan=False)
    json.dumps([record.prompt_tokens, record.output_tokens, record.timings, list(record.tokens)], allow_nan=False)


STRANGE = [
    ({"choices": 5}, "`choices` is not a list"),
    ({"choices": {"0": {}}}, "`choices` is not a list"),
    ({"choices": "text"}, "`choices` is not a list"),
    ({"choices": True}, "`choices` is not a list"),
    ({"choices": [5]}, "a choice is not an object"),
    ({"choices": [None]}, "a choice is not an object"),
    ({"choices": [{"delta": "text"}]}, "`delta` is not an object"),
    ({"choices": [{"delta": ["text"]}]}, "`delta` is not an object"),
    ({"choices": [{"delta": 0}]}, "`delta` is not an object"),
    ({"choices": [{"delta": {"content": 5}}]}, "`content` is not a text"),
    ({"choices": [{"delta": {"content": [{"text": "x"}]}}]}, "`content` is not a text"),
    ({"choices": [{"delta": {"reasoning": {}}}]}, "`reasoning` is not a text"),
    ({"choices": [{"text": 5}]}, "`text` is not a text"),
    ({"choices": [{"token_ids": 5}]}, "`token_ids` is not a list"),
    ({"choices": [{"finish_reason": ["stop"]}]}, "`finish_reason` is not a text"),
    ({"usage": [4]}, "`usage` is not an object"),
    ({"timings": 5}, "`timings` is not an object"),
    ({"system_fingerprint": 5}, "`system_fingerprint` is not a text"),
]


@pytest.mark.parametrize(("chunk", "rule"), STRANGE, ids=[json.dumps(chunk) for chunk, _ in STRANGE])
def test_a_field_of_another_kind_is_a_violation_of_this_request(chunk, rule):
    parts = chunks()
    record, _ = judged(body_of([chunk, *parts]))
    assert (record.violations, record.error) == ([rule], None)
    assert record.output_tokens == 3


@pytest.mark.parametrize(
    "chunk",
    [
        {},
        {"choices": None},
        {"choices": []},
        {"choices": [{"delta": None, "finish_reason": None}]},
        {"choices": [{"delta": {"content": None, "reasoning_content": None}}]},
        {"usage": None, "error": None, "timings": None, "system_fingerprint": None},
    ],
)
def test_null_is_as_good_as_absent(chunk):
    assert judged(body_of([chunk, *chunks()]))[0].violations == []


def test_reasoning_is_text_and_counts():
    deltas = [{"reasoning_content": "a"}, {"reasoning": "b"}, {"content": "c"}]
    parts = [{"id": "r-1", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    record, answer = judged(body_of([*parts, *chunks("chat")[-2:]]), kind="chat")
    assert answer.text == "abc" and record.violations == [] and len(record.tokens) == 3


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"error": {"message": "too\\n  long"}}', "too long"),
        (b'{"error": "plain"}', "plain"),
        (b'{"error": {"code": 4}}', '{"code": 4}'),
        (b'{"error": {"message": null}}', '{"message": null}'),
        (b'{"error": null}', '{"error": null}'),
        (b"[1]", "[1]"),
        (b"<html>\n502</html>", "<html> 502</html>"),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
        (b"", ""),
        (b"[" * 10**5, "[" * 300),
    ],
)
def test_a_status_has_its_message_on_one_line(body, detail):
    record, answer = judged(body, status=503)
    assert (record.error, record.detail, answer, record.violations) == (ErrorClass.STATUS, detail, None, [])


def test_without_an_answer_there_is_nothing_to_judge():
    record = RequestRecord(index=0, intended=0.0, asked_prompt=1, asked_output=1, error=ErrorClass.CONNECT)
    expected = Expected(kind="chat", own_grammar=True, prompt_tokens=1, output_tokens=1, only_length=True)
    assert judge(record, Raw(b"", [], []), expected) is None
    assert (record.error, record.detail, record.violations) == (ErrorClass.CONNECT, None, [])


@given(st.integers(1, 30), st.integers(0, 200))
def test_tokens_are_shared_out_over_the_events_and_none_is_lost(events, total):
    usage = {"prompt_tokens": 4, "completion_tokens": total, "total_tokens": 4 + total}
    parts = [{"choices": [{"text": "x"}]}] * events + [{"choices": [{"finish_reason": "length"}], "usage": usage}]
    record, _ = judged(body_of(parts))
    counts = [count for _, count in record.tokens]
    assert len(counts) == events
    assert sum(counts) == (total if total >= events else events)
    assert max(counts) - min(counts) <= 1


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_ids_are_counted_where_all_events_have_them(lengths):
    parts = [{"choices": [{"text": "x", "token_ids": [7] * length}]} for length in lengths]
    record, _ = judged(body_of([*parts, {"choices": [{"finish_reason": "length"}], "usage": USAGE}]))
    assert [count for _, count in record.tokens] == lengths
    assert any("the stream had" in each for each in record.violations) == (sum(lengths) != 3)


@pytest.mark.parametrize("value", [True, -1, 1.5, "3", None, [], 10**400, 2**60])
def test_a_count_that_is_none_is_not_counted(value):
    parts = chunks()
    parts[-1]["usage"] = USAGE | {"completion_tokens": value}
    record, _ = judged(body_of(parts))
    assert record.output_tokens is None
    assert record.violations == ["usage does not add up"]
    assert [count for _, count in record.tokens] == [1, 1, 1]


@pytest.mark.parametrize("value", [True, "3", None, [], 10**400, -(10**400)])
def test_a_time_that_is_none_is_left_out(value):
    parts = chunks()
    parts[-2]["timings"] = TIMINGS | {"queue_ms": value}
    assert judged(body_of(parts))[0].timings == {"prefill_ms": 2.5, "decode_ms": 3.0}


@pytest.mark.parametrize(
    ("usage", "reason", "texts", "said"),
    [
        (USAGE, "length", [1, 1, 1], []),
        (USAGE, "length", [None, None], []),
        (USAGE, "length", [3], []),
        (USAGE | {"total_tokens": 8}, "length", [3], ["does not add up"]),
        (USAGE, None, [3], []),  # that there is none is the reader's to tell
        (USAGE | {"prompt_tokens": 5, "total_tokens": 8}, "length", [3], ["5 prompt tokens; the prompt has 4"]),
        (USAGE, "length", [2], ["3 output tokens; the stream had 2"]),
        (USAGE, "length", [4], ["3 output tokens; the stream had 4"]),
        (USAGE, "length", [None] * 4, ["4 events with text"]),
        (USAGE, "stop", [2], ["with ignore_eos it is 'length'"]),  # the end token is counted and not sent
        (
            USAGE | {"completion_tokens": 2, "total_tokens": 6},
            "length",
            [2],
            ["'length' after 2 tokens; the bound was 3"],
        ),
        (
            USAGE | {"completion_tokens": 4, "total_tokens": 8},
            "length",
            [4],
            ["4 output tokens though 3 were the bound"],
        ),
        (None, "length", [1], []),
        ({}, "length", [1], ["does not add up"]),
    ],
)
def test_usage_stream_and_request_must_agree(usage, reason, texts, said):
    answer = StreamedAnswer(texts=[(0.0, "x", ids) for ids in texts], finish_reason=reason, usage=usage)
    expected = Expected(kind="chat", own_grammar=False, prompt_tokens=4, output_tokens=3, only_length=True)
    found = miscounts(answer, expected)
    assert len(found) == len(said) and all(words in one for words, one in zip(said, found, strict=True)), found


def test_the_reader_notes_a_rule_once_and_names_the_data():
    reader = StreamReader(usage_asked=False)
    for data in (b"x", b"x", b"y", b' {"id": "a"} ', b'{"id": "b"}', b'{"id": "c"}', b"", b" [DONE] "):
        reader.feed(1.0, data)
    found = reader.finish().violations
    assert found == [
        "not a JSON object: b'x'",
        "not a JSON object: b'y'",
        "the id changes inside the stream",
        "no finish reason",
    ]


@pytest.mark.parametrize(
    "body",
    [
        None,
        5,
        [],
        {},
        {"choices": None},
        {"choices": []},
        {"choices": [{}, {}]},
        {"choices": [5]},
        {"choices": {"0": {}}},
        {"choices": [{"message": "text"}]},
        {"choices": [{"message": {"content": 5}}]},
        {"choices": [{"text": 5}]},
        {"choices": [{"text": "x"}], "usage": []},
    ],
)
def test_an_answer_of_another_shape_is_refused(body):
    with pytest.raises(ValueError, match=r"answer|message|text"):
        whole_answer(body)


@given(JSON)
def test_no_json_makes_reading_an_answer_fail_in_another_way(value):
    for body in (value, {"choices": value}, {"choices": [value]}, {"choices": [{"message": value}]}):
        with suppress(ValueError):
            assert isinstance(whole_answer(body).text, str)
    assert isinstance(error_message(value), str)


@given(st.binary(max_size=40))
def test_bytes_that_are_no_json_are_nothing(data):
    value = json_value(data)
    assert value is None or json_value(json.dumps(value).encode()) == value
