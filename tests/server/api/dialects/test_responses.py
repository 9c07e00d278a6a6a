"""`/v1/responses`: what is asked reaches the chat job, and what comes of it has the shapes of OpenAI's own client."""

import pytest

from server.api.dialects import responses
from server.api.dialects.responses_history import messages_of
from server.schema.dialects.responses import ResponsesRequest
from server.schema.dialects.responses_answers import ResponseAnswer
from server.schema.dialects.responses_items import ITEMS
from server.structured.compiler import Compiled, GrammarCompiler
from tests.server.api import scripted
from tests.server.api.dialects.asked import asked, prompt_of, streamed
from tests.server.api.scripted import text_reply
from tests.server.api.test_tools import QWEN, THINKING

PATH = "/v1/responses"
HI = {"input": "Hi"}


def test_a_text_is_answered_with_a_message():
    response, server = asked(PATH, {**HI, "instructions": "Be brief.", "metadata": {"a": "b"}})
    assert response.status_code == 200, response.text
    answer = ResponseAnswer.model_validate_json(response.content)
    assert (answer.status, answer.error, answer.metadata) == ("completed", None, {"a": "b"})
    assert answer.id.startswith("resp_") and answer.output[0].id.startswith("msg_")
    assert [part.text for part in answer.output[0].content] == ["Hello, wörld!"]
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (40, 15, 55)
    turns = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_of(server) == turns


def test_items_are_turns():
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}],
        },
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
    ]
    _, server = asked(PATH, {"input": items})
    expected = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "ab")]
    turns = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in expected)
    assert prompt_of(server) == turns + "<|im_start|>assistant\n"


def test_events_are_numbered_and_add_up_to_the_answer():
    events = streamed(PATH, HI)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert len(deltas) == 13 and "".join(deltas) == "Hello, wörld!"
    assert [event["type"] for event in events if not event["type"].endswith("text.delta")] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    whole = ResponseAnswer.model_validate(events[-1]["response"])
    assert whole.output[0].content[0].text == "Hello, wörld!" and whole.usage.output_tokens == 15
    assert events[-2]["item"] == events[-1]["response"]["output"][0]
    assert {event["item_id"] for event in events if "item_id" in event} == {whole.output[0].id}


def test_an_answer_that_is_cut_is_incomplete():
    events = streamed(PATH, {**HI, "max_output_tokens": 3})
    whole = ResponseAnswer.model_validate(events[-1]["response"])
    assert events[-1]["type"] == "response.incomplete" and whole.status == whole.output[0].status == "incomplete"
    assert whole.incomplete_details.reason == "max_output_tokens" and whole.completed_at is None
    assert whole.output[0].content[0].text == "Hel"


def test_an_empty_answer_is_a_message_without_text():
    answer = ResponseAnswer.model_validate_json(asked(PATH, HI, reply="")[0].content)
    assert [part.text for part in answer.output[0].content] == [""]


@pytest.mark.parametrize("asks", [{"include": ["message.output_text.logprobs"]}, {"top_logprobs": 2}])
def test_logprobs_come_with_the_text(asks):
    answer = ResponseAnswer.model_validate_json(asked(PATH, {**HI, **asks, "max_output_tokens": 3})[0].content)
    logprobs = answer.output[0].content[0].logprobs
    assert [entry.token for entry in logprobs] == ["H", "e", "l"]
    assert [len(entry.top_logprobs) for entry in logprobs] == [asks.get("top_logprobs", 0)] * 3
    deltas = streamed(PATH, {**HI, **asks, "max_output_tokens": 3})[4:7]
    assert [delta["logprobs"][0]["token"] for delta in deltas] == ["H", "e", "l"]


TOOL = {"type": "function", "name": "f", "parameters": {}}
NO_CALL, CALLED = "a <tool_cal> <b", '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


@pytest.mark.parametrize(
    ("reply", "asks", "template", "told"),
    [
        (NO_CALL, {"tools": [TOOL]}, QWEN, NO_CALL),
        ("\n\n<", {"tools": [TOOL]}, QWEN, "\n\n<"),
        (CALLED, {"tools": [TOOL]}, QWEN, ""),
        (f"Now:{CALLED}", {"tools": [TOOL]}, QWEN, "Now:"),
        ("<think>a</think>\nb <", {}, THINKING, "\nb <"),
        ("<think>a < b", {}, THINKING, ""),
    ],
)
def test_no_token_of_a_text_that_was_held_back_lacks_its_logprobs(monkeypatch, reply, asks, template, told):
    async def compiled(self, grammar, engine, owner):
        return Compiled("g", "v")

    monkeypatch.setattr(GrammarCompiler, "compile", compiled)
    monkeypatch.setattr(scripted, "CONTEXT", 8192)
    body = {"input": "Hi", "top_logprobs": 1, **asks}
    entries = []
    for event in streamed(PATH, body, reply=text_reply(reply, end=False), template=template):
        if event["type"] == "response.output_text.delta":
            entries += event["logprobs"]
    whole, _ = asked(PATH, body, reply=text_reply(reply, end=False), template=template)
    parts = [part for item in whole.json()["output"] if item["type"] == "message" for part in item["content"]]
    assert [entry["token"] for part in parts for entry in part["logprobs"]] == list(told)
    assert [entry["token"] for entry in entries] == list(told)


def test_many_thoughts_in_a_row_are_one_message():
    thoughts = [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": f"{i} "}]} for i in range(500)]
    items = [ITEMS.validate(each) for each in (*thoughts, {"role": "assistant", "content": "So."})]
    (message,) = messages_of(items)
    assert message["reasoning_content"] == "".join(f"{i} " for i in range(500)) and message["content"] == "So."


def test_sampling_reaches_the_engine():
    body = {**HI, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "seed": 3, "presence_penalty": 1}
    _, server = asked(PATH, {**body, "frequency_penalty": -1, "max_output_tokens": 9})
    sampling = server.process.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 7, 0.1)
    assert (sampling.seed, sampling.presence_penalty, sampling.frequency_penalty, sampling.max_tokens) == (3, 1, -1, 9)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"input": "a" * 300}, "input", ["256 tokens"]),
        ({**HI, "max_output_tokens": 300}, "max_output_tokens", ["256", "300 in `max_output_tokens`"]),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].type",
         ["input_image", "input_text"]),
        ({"input": [{"type": "computer_call"}]}, "input[0].type", ["computer_call"]),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", ["reasoning"]),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "of another"}]}, "input", ["reasoning"]),
        ({**HI, "conversation": "conv_1"}, "conversation", ["not served"]),
        ({**HI, "prompt": {"id": "p"}}, "prompt", ["not served"]),
        ({**HI, "max_tokens": 5}, "max_tokens", ["/v1/chat/completions"]),
        ({**HI, "metadata": {"a": "b" * 513}}, "metadata.a", ["512", "513"]),
        ({**HI, "include": ["thoughts"]}, "include[0]", ["thoughts"]),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id", ["msg_1", "never was stored"]),
    ],
)  # fmt: skip
def test_refusals_are_in_the_words_of_this_api(body, param, words):
    response, _ = asked(PATH, body)
    error = response.json()["error"]
    assert response.status_code in (400, 404) and error["param"] == param
    assert all(word in error["message"] for word in words)


def test_items_have_a_limit_of_their_own():
    many = {"input": [{"role": "user", "content": "a"}] * 3}
    assert asked(PATH, many, max_inputs=2)[0].status_code == 200
    error = asked(PATH, many, max_items=2)[0].json()["error"]
    assert error["param"] == "input" and "at most 2 entries, got 3" in error["message"]


def test_tokens_are_counted_as_they_would_be_given_to_the_model():
    body = {"input": [{"role": "user", "content": "Hi"}], "instructions": "Be brief."}
    counted, _ = asked(f"{PATH}/input_tokens", body)
    _, server = asked(PATH, body)
    assert counted.json() == {
        "object": "response.input_tokens",
        "input_tokens": len(server.process.requests[0].prompt_ids),
    }
    long = {"input": [{"role": "user", "content": text} for text in ("a" * 200, "b" * 200)]}
    assert asked(f"{PATH}/input_tokens", long)[0].json()["input_tokens"] > 400, "more than the context has room for"
    cut = asked(f"{PATH}/input_tokens", {**long, "truncation": "auto"})[0].json()["input_tokens"]
    assert cut == asked(f"{PATH}/input_tokens", {"input": "b" * 200})[0].json()["input_tokens"]


def test_answer_and_events_are_those_of_openais_client():
    from openai._models import validate_type
    from openai.types import responses as theirs  # dear to import

    for stream in (streamed(PATH, HI), streamed(PATH, {**HI, "top_logprobs": 2, "max_output_tokens": 2})):
        for event in stream:
            validate_type(type_=theirs.ResponseStreamEvent, value=event)
    validate_type(type_=theirs.Response, value=asked(PATH, HI)[0].json())
    params = theirs.response_create_params.ResponseCreateParamsBase.__annotations__
    assert not set(params) - ResponsesRequest.known()
    assert responses.ENDPOINT.path == PATH
