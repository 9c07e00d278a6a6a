"""Every format is recognised by its first line and read as published; broken rows are reported by line."""

import gzip
import json
from pathlib import Path

import pytest

from loadtest.workload.traces import TraceRequest, own
from loadtest.workload.traces.problems import TraceError
from loadtest.workload.traces.read import FORMATS, read_trace

DATA = Path(__file__).parents[1] / "data"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"


def written(tmp_path, text):
    path = tmp_path / "trace"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "format", "many", "tick", "timed"),
    [
        ("burstgpt_1.csv", "burstgpt", 29, 1, True),
        ("burstgpt_3.csv", "burstgpt", 30, 1, True),
        ("azure_conv.csv", "azure", 30, 0, True),
        ("mooncake.jsonl", "mooncake", 30, 3, True),
        ("mt_bench.jsonl", "prompts", 12, 0, False),
    ],
)
def test_published_files_are_known_by_their_first_line(name, format, many, tick, timed):
    trace = read_trace(DATA / name)
    assert (trace.format, len(trace.requests), trace.tick, trace.timed) == (format, many, tick, timed)
    arrivals = [request.arrival for request in trace.requests]
    assert arrivals[0] == 0 and arrivals == sorted(arrivals)
    assert read_trace(DATA / name, format) == trace


def test_burstgpt_counts_from_its_first_request_and_leaves_failed_ones_out():
    trace = read_trace(DATA / "burstgpt_1.csv", strict=True)
    assert trace.requests[0] == TraceRequest(
        line=2, arrival=0, prompt_tokens=472, output_tokens=18, klass="ChatGPT", session=None
    )
    assert trace.requests[1].arrival == 45 - 5
    assert trace.requests[2].klass == "GPT-4"
    assert [row.text for row in trace.problems] == ["burstgpt_1.csv, line 22: a failed request: no response tokens"]


def test_burstgpt_with_sessions():
    first = read_trace(DATA / "burstgpt_3.csv").requests[0]
    assert (first.session, first.prompt_tokens, first.output_tokens) == (
        "1722ac82-0a46-4bf0-aa08-89794e7a2b3f",
        906,
        446,
    )


def test_azure_keeps_the_fraction_and_needs_no_newline_at_the_end():
    trace = read_trace(DATA / "azure_conv.csv")
    assert trace.requests[1].arrival == pytest.approx(50.9951690 - 46.6805900, abs=1e-6)
    assert (trace.requests[0].prompt_tokens, trace.requests[0].output_tokens) == (374, 44)
    assert trace.requests[-1].line == 31


def test_mooncake_names_the_blocks_of_its_prompts():
    request = read_trace(DATA / "mooncake.jsonl").requests[1]
    assert (request.block_tokens, request.blocks[:3], len(request.blocks)) == (512, (0, 14, 15), -(-7322 // 512))


def test_turns_are_a_session_that_extends_itself():
    first, second = read_trace(DATA / "mt_bench.jsonl").requests[:2]
    assert first.session == second.session and first.klass == "writing"
    assert second.prompt.startswith(first.prompt + "\n\n")


@pytest.mark.parametrize("lines", [False, True])
def test_sharegpt(tmp_path, lines):
    turns = [("human", "Hi"), ("gpt", "Hello there"), ("human", "Bye"), ("gpt", "x" * 40), ("human", "unanswered")]
    talk = {"id": "a", "conversations": [{"from": who, "value": said} for who, said in turns]}
    broken = {"id": "b", "conversations": [{"from": "gpt", "value": "first"}]}
    text = "\n".join(map(json.dumps, [talk, broken])) if lines else json.dumps([talk, broken], indent=1)
    trace = read_trace(written(tmp_path, text))
    assert trace.format == "sharegpt" and not trace.timed
    assert [(each.prompt, each.output_tokens, each.session) for each in trace.requests] == [
        ("Hi", 3, "a"),
        ("Hi\n\nHello there\n\nBye", 10, "a"),
    ]
    assert [row.text for row in trace.problems] == [
        'trace, line 2: no human turn with an answer: conversations is [{"from": "gpt", "value": "first"}]'
    ]


def test_own_format_comes_back_as_written(tmp_path):
    requests = [
        TraceRequest(line=2, arrival=0.0, prompt_tokens=5, output_tokens=2, klass="chat", session="s"),
        TraceRequest(line=3, arrival=0.25, prompt_tokens=70, output_tokens=1, blocks=(0, 9, 4), block_tokens=32),
        TraceRequest(line=4, arrival=1.5, prompt_tokens=0, output_tokens=3, prompt="What?\n"),
    ]
    own.write(tmp_path / "t.jsonl", requests, tick=0.5)
    trace = read_trace(tmp_path / "t.jsonl", strict=True)
    assert (trace.requests, trace.tick, trace.format) == (requests, 0.5, "headrace")


HEADER = '{"format": "headrace.trace/1"}\n'
GOOD = {
    "burstgpt": BURSTGPT + "822291,ChatGPT,63,3,66,API log\n",
    "azure": AZURE + "2023-11-16 18:15:46.6805900,374,44\r\n",
    "mooncake": '{"timestamp": 0, "input_length": 513, "output_length": 5, "hash_ids": [0, 1]}\n',
    "headrace": HEADER + '{"at": 1, "prompt_tokens": 4, "output_tokens": 2}\n',
    "prompts": '{"prompt": "a"}\n',
}


@pytest.mark.parametrize(
    ("format", "row", "reason"),
    [
        ("burstgpt", "5,ChatGPT,472,18,490", "5 columns instead of 6"),
        ("burstgpt", "5,ChatGPT,472,18,491,API log", "Total tokens is 491"),
        ("burstgpt", "-5,ChatGPT,4,1,5,API log", "at least 0"),
        ("burstgpt", "5,ChatGPT,0,1,1,API log", "Request tokens is 0"),
        ("burstgpt", "5,ChatGPT,4.5,1,5.5,API log", "not a whole number"),
        ("azure", "16.11.2023,3,4", "TIMESTAMP is '16.11.2023'"),
        ("azure", "2023-13-16 18:15:46.1,3,4", "month must be in 1..12"),
        ("azure", "2023-11-16 18:15:46.1,0,4", "at least 1"),
        ("azure", "2023-11-16 18:15:46.1,4", "2 columns"),
        ("mooncake", '{"timestamp": 0, "input_length": 513, "output_length": 5, "hash_ids": [0]}', "are 2 blocks"),
        ("mooncake", '{"timestamp": 0, "output_length": 5, "hash_ids": [0]}', "input_length is missing"),
        ("mooncake", '{"timestamp": 0,', "not JSON"),
        ("headrace", '{"at": 1, "prompt_tokens": 4, "output_tokens": 2, "tokens": 3}', "unknown fields tokens (3)"),
        ("headrace", '{"at": 1, "output_tokens": 2}', "prompt_tokens is missing"),
        (
            "headrace",
            '{"at": 1, "prompt_tokens": 4, "output_tokens": 2, "blocks": [1, 2], "block_tokens": 4}',
            "blocks has 2 ids; 4 tokens are 1 blocks of 4",
        ),
        ("headrace", "[]", "not a JSON object"),
        ("prompts", '{"answer": "a"}', "no prompt"),
    ],
)
def test_a_broken_row_is_reported_by_line_and_stops_a_strict_reader(tmp_path, format, row, reason):
    path = written(tmp_path, GOOD[format] + row + "\n")
    line = 2 if format in ("mooncake", "prompts") else 3
    trace = read_trace(path)
    assert trace.format == format and len(trace.requests) == 1
    (problem,) = (row.text for row in trace.problems)
    assert problem.startswith(f"trace, line {line}: ") and reason in problem
    with pytest.raises(TraceError) as refused:
        read_trace(path, strict=True)
    assert str(refused.value) == problem


def test_stamps_need_not_begin_at_0_nor_be_in_order(tmp_path):
    text = BURSTGPT + "90,A,1,1,2,x\n822291.0,ChatGPT,63,3,66,API log\n70,B,1,1,2,x\n"
    assert [request.arrival for request in read_trace(written(tmp_path, text)).requests] == [0, 20, 822221]


@pytest.mark.parametrize(
    ("text", "format", "said"),
    [
        ("a,b\n1,2\n", None, "no known format"),
        ("", None, "no known format"),
        (BURSTGPT, None, "no request"),
        (GOOD["azure"], "burstgpt", "does not begin with the columns"),
        (GOOD["azure"], "csv", "unknown format"),
        ('{"format": "headrace.trace/9"}\n', None, "this version reads"),
        ("[{\n", None, "begins like a JSON array but is not one"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path, text, format, said):
    with pytest.raises(TraceError, match=said):
        read_trace(written(tmp_path, text), format)
    with pytest.raises(TraceError, match="no such file"):
        read_trace(tmp_path / "absent")


def test_formats_do_not_take_each_others_files():
    for path in DATA.glob("*.[cj]s*"):
        first = path.read_text().splitlines()[0]
        assert sum(format.sniff(first) for format in FORMATS.values()) == 1


@pytest.mark.parametrize("name", ["azure_conv.csv", "burstgpt_3.csv", "mooncake.jsonl", "mt_bench.jsonl"])
def test_a_gzipped_trace_is_read_as_it_is(name, tmp_path):
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress((DATA / name).read_bytes()))
    plain, packed = read_trace(DATA / name), read_trace(path)
    assert packed.requests == plain.requests and packed.format == plain.format and packed.name == f"{name}.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(TraceError, match="not a whole gzipped file"):
        read_trace(path)
    path.write_bytes((DATA / name).read_bytes())
    with pytest.raises(TraceError, match="not a whole gzipped file"):
        read_trace(path)


@pytest.mark.parametrize(
    ("name", "said"), [("-", "save what is piped"), ("https://x/t.csv", "curl -LO https://x/t.csv")]
)
def test_what_is_no_file_is_refused_with_what_to_do_instead(name, said):
    with pytest.raises(TraceError) as caught:
        read_trace(name)
    assert said in str(caught.value)


def test_tenants_and_priorities_come_back_from_headraces_own_format(tmp_path):
    path = tmp_path / "t.jsonl"
    requests = [
        TraceRequest(line=2, arrival=0.0, prompt_tokens=1, output_tokens=1, tenant="ada", klass="chat", priority=3),
        TraceRequest(line=3, arrival=1.0, prompt_tokens=1, output_tokens=1, tenant="bob", klass="bob"),
    ]
    own.write(path, requests)
    assert read_trace(path, strict=True).requests == requests
    path.write_text(path.read_text().replace('"priority": 3', '"priority": "high"'))
    with pytest.raises(TraceError, match="priority is 'high', not a whole number"):
        read_trace(path, strict=True)
