"""`/v1/messages`: what is asked reaches the chat job, and what comes of it has the shapes of Anthropic's own client."""

import pytest

from server.schema.dialects.messages_answers import MessageAnswer, MessagesErrorAnswer
from tests.server.api.dialects.asked import asked, prompt_of, streamed

PATH = "/v1/messages"
USER = {"role": "user", "content": "Hi"}
HI = {"messages": [USER], "max_tokens": 50}


def test_a_conversation_is_answered_with_a_message():
    body = {**HI, "system": "Be brief.", "metadata": {"user_id": "ann"}}
    response, server = asked(PATH, body, {"anthropic-version": "2023-06-01", "anthropic-beta": "a,b"})
    assert response.status_code == 200, response.text
    answer = MessageAnswer.model_validate_json(response.content)
    assert answer.id.startswith("msg_") and [block.text for block in answer.content] == ["Hello, wörld!"]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert (answer.usage.input_tokens, answer.usage.cache_read_input_tokens, answer.usage.output_tokens) == (20, 20, 15)
    turns = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_of(server) == turns and server.process.requests[0].tenant == "ann"


def test_blocks_and_cache_hints_are_text():
    hint = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    system = [{"type": "text", "text": "a", **hint}, {"type": "text", "text": "b"}]
    content = [{"type": "text", "text": "c", **hint}, {"type": "text", "text": "d"}]
    _, server = asked(PATH, {**HI, "system": system, "messages": [{"role": "user", "content": content}], **hint})
    turns = "<|im_start|>system\nab<|im_end|>\n<|im_start|>user\ncd<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_of(server) == turns


def test_events_add_up_to_the_answer():
    events = streamed(PATH, HI)
    deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert len(deltas) == 13 and "".join(deltas) == "Hello, wörld!"
    kinds = [event["type"] for event in events if event["type"] != "content_block_delta"]
    assert kinds == ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]
    assert events[0]["message"]["content"] == [] and events[0]["message"]["usage"]["cache_read_input_tokens"] == 10
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 15


@pytest.mark.parametrize(
    ("asks", "reason", "sequence", "text"),
    [
        ({"max_tokens": 3}, "max_tokens", None, "Hel"),
        ({"stop_sequences": [",", "!"]}, "stop_sequence", ",", "Hello"),
        ({"max_tokens": 10**6}, "end_turn", None, "Hello, wörld!"),
    ],
)
def test_it_says_why_it_stopped(asks, reason, sequence, text):
    answer = MessageAnswer.model_validate_json(asked(PATH, {**HI, **asks})[0].content)
    assert (answer.stop_reason, answer.stop_sequence, answer.content[0].text) == (reason, sequence, text)
    assert streamed(PATH, {**HI, **asks})[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_an_answer_ends_with_the_context_where_more_was_asked_for():
    response, server = asked(PATH, {**HI, "max_tokens": 10**6}, reply="a" * 1000)
    answer = MessageAnswer.model_validate_json(response.content)
    assert answer.stop_reason == "model_context_window_exceeded"
    assert answer.usage.output_tokens == 256 - len(server.process.requests[0].prompt_ids)


def test_an_answer_begun_by_the_client_goes_on():
    _, server = asked(PATH, {**HI, "messages": [USER, {"role": "assistant", "content": "He"}]})
    assert prompt_of(server).endswith("<|im_start|>assistant\nHe")


def test_tokens_are_counted_as_they_would_be_given_to_the_model():
    body = {"messages": [USER], "system": [{"type": "text", "text": "Be brief."}]}
    counted, _ = asked(f"{PATH}/count_tokens", body)
    _, server = asked(PATH, {**body, "max_tokens": 5})
    assert counted.json() == {"input_tokens": len(server.process.requests[0].prompt_ids)}
    long = asked(f"{PATH}/count_tokens", {"messages": [{**USER, "content": "a" * 500}]})[0]
    assert long.json() == {"input_tokens": 519}, "more than the context has room for"


@pytest.mark.parametrize(
    ("body", "status", "kind", "param", "words"),
    [
        ({**HI, "model": "large"}, 404, "not_found_error", "model", ["large", "small"]),
        ({"messages": [USER]}, 400, "invalid_request_error", "max_tokens", ["required"]),
        ({**HI, "stop_sequences": ["a"] * 17}, 400, "invalid_request_error", "stop_sequences", ["16", "17"]),
        ({**HI, "messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400, "invalid_request_error",
         "messages[0].content[0].type", ["image", "text"]),
        ({**HI, "messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]}]}, 400,
         "invalid_request_error", "messages[0].content[0]", ["text or a tool_result", "tool_use"]),
        ({**HI, "mcp_servers": [{}]}, 400, "invalid_request_error", "mcp_servers", ["not served"]),
    ],
)  # fmt: skip
def test_errors_have_anthropics_form(body, status, kind, param, words):
    response, _ = asked(PATH, body, {"x-request-id": "mine"})
    answer = MessagesErrorAnswer.model_validate_json(response.content)
    assert (response.status_code, answer.error.type, answer.error.param) == (status, kind, param)
    assert answer.request_id == "mine" and all(word in answer.error.message for word in words)


def test_errors_of_the_middleware_have_it_too():
    response, _ = asked(PATH, HI, api_key=["sesame"])
    assert response.status_code == 401
    assert MessagesErrorAnswer.model_validate_json(response.content).error.type == "authentication_error"
    assert asked(PATH, HI, {"x-api-key": "sesame"}, api_key=["sesame"])[0].status_code == 200
