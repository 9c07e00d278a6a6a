"""What a body may hold is counted before it is parsed: outside strings, in one pass, whatever the bytes."""

import asyncio
import json
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.types.sampling_params import SamplingParams
from server.api.requests import validate
from server.api.requests.json_bounds import COUNTED_BYTES, MAX_CONTAINERS, MAX_STRINGS, MAX_VALUES, check_bounds
from server.api.requests.parse import decode_object
from server.errors import InvalidRequest
from server.stream.job import TokenizedPrompt
from server.to_thread import ALONE_BYTES, by_size
from tests.server.api.scripted import Server, run


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"a": [' + b"{}," * MAX_CONTAINERS + b"{}]}", "objects"), (b"[" * (MAX_CONTAINERS + 1), "objects"),
        (b'{"a":{},' * MAX_CONTAINERS, "objects"), (b'{"a": [' + b'"",' * MAX_STRINGS + b'""]}', "strings"),
        (b"{" + b'"a":1,' * MAX_STRINGS + b'"b":1}', "strings"), (b'{"a": [' + b"1," * (MAX_VALUES + 1) + b"1]}", "values"),
        (b'{"a": "' + b'\\"' * 99999 + b'", "b": [' + b"{}," * MAX_CONTAINERS + b"{}]}", "objects"),
        (b'["a", ' + b'[["x"]], ' * MAX_CONTAINERS, "objects"), (b'{"\\\\": [' + b"{}," * MAX_CONTAINERS + b"{}]}", "objects"),
    ],
)  # fmt: skip
def test_too_much_is_refused_before_it_is_parsed(body, kind, monkeypatch):
    monkeypatch.setattr("server.api.requests.parse._DECODER", None)  # it is not asked
    with pytest.raises(InvalidRequest, match=kind):
        decode_object(body)


@pytest.mark.parametrize("text", ['[{,"' * 200_000, "\\" * 300_000, '"' * 100_000, "é,{" * 100_000, '\\"[,]' * 50_000])
def test_what_stands_in_strings_counts_for_nothing(text):
    assert decode_object(json.dumps({"prompt": text}).encode()) == {"prompt": text}


def test_as_many_token_ids_as_a_body_holds_are_read():
    ids = list(range(10_000, 10_000 + 2048))
    assert len(decode_object(json.dumps({"prompt": [ids] * 400}).encode())["prompt"]) == 400


@given(st.binary(max_size=60), st.sampled_from([b"", b'"', b"\\", b'"\\']))
def test_any_bytes_are_counted_without_a_failure(noise, end):
    check_bounds(b" " * COUNTED_BYTES + noise + end)


def test_strings_without_end_cost_no_more_than_others():
    """Each quote could be the beginning of one that reaches to the end: 8 million steps, or 30 million million."""
    check_bounds(b'{"a": "' + b'\\"' * 4_000_000)
    check_bounds(b'{"a": "' + b"\\" * 7_999_999)


def test_large_bodies_are_worked_on_one_at_a_time_and_small_ones_beside_them():
    async def body():
        gate, running, most = threading.Event(), [], []

        def large():
            running.append(1)
            most.append(len(running))
            gate.wait(30)
            running.pop()

        tasks = [asyncio.create_task(by_size(ALONE_BYTES + 1, large)) for _ in range(4)]
        assert await by_size(ALONE_BYTES, lambda: "beside") == "beside"
        assert await by_size(1, lambda: "at once") == "at once"
        gate.set()
        await asyncio.gather(*tasks)
        return most

    assert run(body) == [1, 1, 1, 1]


def test_the_log_probabilities_of_an_answer_have_a_limit(monkeypatch):
    prompts = [(TokenizedPrompt([1] * 100, None, "prompt"), SamplingParams(max_tokens=1, prompt_logprobs=20))] * 10
    most = 2 * 10 * 100 * 21
    monkeypatch.setattr(validate, "MAX_PROMPT_SCORES", most)
    validate.check_prompt_scores(prompts, 2)
    with pytest.raises(InvalidRequest, match=f"at most {most}, got {most // 2 * 3}"):
        validate.check_prompt_scores(prompts, 3)
    without = [(prompt, replace(settings, prompt_logprobs=None)) for prompt, settings in prompts]
    validate.check_prompt_scores(without, 10_000)


def test_a_request_over_that_limit_is_refused(monkeypatch):
    monkeypatch.setattr(validate, "MAX_PROMPT_SCORES", 9)
    body = {"prompt": "abcdef", "prompt_logprobs": 4, "max_tokens": 1}
    response = run(lambda: Server().post("/v1/completions", body))
    assert response.status_code == 400 and response.json()["error"]["param"] == "prompt_logprobs"
