"""Coding agents' requests, in the shapes that they send: long histories, calls in parallel, cache hints, headers that change.

The scripted engine answers with thoughts, a text and two calls, so that each answer has all that one can have.
"""

import json

import pytest

from server.api.dialects import messages, responses
from server.api.requests.parse import parse
from server.api.tenants import ANYBODY
from server.schema.dialects.messages_answers import MessageAnswer
from server.schema.dialects.responses_answers import ResponseAnswer
from server.text.formats.tool_formats import REASONING_FORMATS, ReasoningFormat
from tests.server.api.dialects.asked import asked, events_of, prompt_of, streamed
from tests.server.api.scripted import Server
from tests.server.api.test_tools import QWEN

REPLY = (
    "<think>\nTwo files.\n</think>\n\nI read them.\n"
    '<tool_call>\n{"name": "Read", "arguments": {"path": "a.py"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "Read", "arguments": {"path": "b.py"}}\n</tool_call>'
)
pytestmark = pytest.mark.usefixtures("room_for_tools", "grammars")

SERVER = {"reply": REPLY, "template": QWEN, "reasoning_format": "think"}
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
BILLED = "x-anthropic-billing-header: cc_version=2.1.107.3d9; cc_entrypoint=cli; cch=74943;"
HINT = {"cache_control": {"type": "ephemeral"}}
CLAUDE_CODE = {
    "model": "small",
    "max_tokens": 32000,
    "stream": True,
    "metadata": {"user_id": "user_0f_account__session_1"},
    "system": [
        {"type": "text", "text": "You are a coding agent.", **HINT},
        {"type": "text", "text": "\nWork in /src.", **HINT},
    ],
    "tools": [
        {"name": "Read", "description": "Reads a file.", "input_schema": SCHEMA},
        {"name": "LS", "description": "", "input_schema": {"type": "object", "properties": {}}, **HINT},
    ],
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "high"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>x</system-reminder>"},
                {"type": "text", "text": "Go."},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "First look.", "signature": "s"},
                {"type": "text", "text": "Looking."},
                {"type": "tool_use", "id": "t1", "name": "LS", "input": {}},
                {"type": "tool_use", "id": "t2", "name": "Read", "input": {"path": "c.py"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "a.py b.py"},
                {
                    "type": "tool_result",
                    "tool_use_id": "t2",
                    "is_error": True,
                    "content": [{"type": "text", "text": "no c.py"}],
                },
                {"type": "text", "text": "Go on.", **HINT},
            ],
        },
    ],
}
CODEX = {
    "model": "small",
    "instructions": "You are a coding agent.",
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Work in /src."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Go."}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAA"},
        {"type": "function_call", "call_id": "t1", "name": "LS", "arguments": "{}"},
        {"type": "function_call", "call_id": "t2", "name": "Read", "arguments": '{"path": "c.py"}'},
        {"type": "function_call_output", "call_id": "t1", "output": "a.py b.py"},
        {"type": "function_call_output", "call_id": "t2", "output": [{"type": "input_text", "text": "no c.py"}]},
    ],
    "tools": [
        {"type": "function", "name": "Read", "description": "Reads a file.", "strict": False, "parameters": SCHEMA},
        {"type": "function", "name": "LS", "strict": False, "parameters": {"type": "object", "properties": {}}},
        {"type": "web_search", "external_web_access": False},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0199a213",
    "client_metadata": {"turn": "1"},
}


def history_of(server) -> str:
    """The prompt behind the system's messages."""
    return prompt_of(server).partition("<|im_start|>user\n")[2]


LS, READ = '{"name": "LS", "arguments": {}}', '{"name": "Read", "arguments": {"path": "c.py"}}'
CALLS = f"<tool_call>{LS}</tool_call><tool_call>{READ}</tool_call>"
RESULTS = "".join(
    f"<|im_start|>user\n<tool_response>{text}</tool_response><|im_end|>\n" for text in ("a.py b.py", "no c.py")
)


def test_claude_codes_request_is_told_to_the_model():
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "interleaved-thinking-2025-05-14", "x-app": "cli"}
    response, server = asked("/v1/messages?beta=true", CLAUDE_CODE, headers, **SERVER)
    assert response.status_code == 200, response.text
    assert history_of(server) == (
        "<system-reminder>x</system-reminder>Go.<|im_end|>\n"
        f"<|im_start|>assistant\nLooking.{CALLS}<|im_end|>\n{RESULTS}"
        "<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert '"name": "Read"' in prompt_of(server) and "You are a coding agent.\nWork in /src." in prompt_of(server)


def test_what_changes_from_turn_to_turn_stands_in_no_prompt():
    _, first = asked("/v1/messages", CLAUDE_CODE, {"x-request-id": "1", "user-agent": "a"}, **SERVER)
    told = {"type": "text", "text": BILLED}
    changed = {**CLAUDE_CODE, "metadata": {"user_id": "b"}, "system": [told, *CLAUDE_CODE["system"]]}
    _, second = asked("/v1/messages", changed, {"x-request-id": "2"}, **SERVER)
    assert prompt_of(first) == prompt_of(second)


@pytest.mark.parametrize(
    ("system", "told"), [(f"{BILLED}\nBe brief.", "Be brief."), (BILLED, None), ("Be brief.", "Be brief.")]
)
def test_a_line_for_anthropics_accounts_is_not_told_to_the_model(system, told):
    body = {"messages": [{"role": "user", "content": "Hi"}], "system": system}
    _, server = asked("/v1/messages", {**body, "max_tokens": 9}, **SERVER)
    assert prompt_of(server).partition("<|im_start|>user")[0] == (
        f"<|im_start|>system\n{told}<|im_end|>\n" if told else ""
    )
    counted, _ = asked("/v1/messages/count_tokens", body, **SERVER)
    assert counted.json() == {"input_tokens": len(server.process.requests[0].prompt_ids)}


def test_a_message_has_thoughts_a_text_and_calls():
    answer = MessageAnswer.model_validate_json(
        asked("/v1/messages", CLAUDE_CODE | {"stream": False}, **SERVER)[0].content
    )
    thought, text, *calls = answer.content
    assert (thought.thinking, text.text.strip(), answer.stop_reason) == ("Two files.", "I read them.", "tool_use")
    assert [(call.name, call.input) for call in calls] == [("Read", {"path": "a.py"}), ("Read", {"path": "b.py"})]
    assert calls[0].id != calls[1].id and thought.signature


def test_a_messages_events_add_up_to_it():
    events = streamed("/v1/messages", CLAUDE_CODE, **SERVER)
    opened = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert opened == ["thinking", "text", "tool_use", "tool_use"]
    grown = [[], [], [], []]
    for event in events:
        if event["type"] == "content_block_delta":
            kind = event["delta"]["type"]
            field = {"thinking_delta": "thinking", "text_delta": "text", "input_json_delta": "partial_json"}.get(kind)
            grown[event["index"]].append(event["delta"][field] if field else "")
    thought, text, *calls = ["".join(each) for each in grown]
    assert (thought, text.strip()) == ("Two files.", "I read them.")
    assert [json.loads(call) for call in calls] == [{"path": "a.py"}, {"path": "b.py"}]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    order = [event["index"] for event in events if event["type"].startswith("content_block")]
    assert order == sorted(order), "one block ends before the next begins"


@pytest.mark.parametrize(("format", "bound"), [("seed", 1024), ("think", None), ("none", None)])
def test_a_budget_bounds_thoughts_where_the_model_has_tokens_around_them(format, bound, monkeypatch):
    monkeypatch.setitem(REASONING_FORMATS, "seed", ReasoningFormat("seed", "<|im_start|>", "<|im_end|>"))
    body = {**CLAUDE_CODE, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    response, server = asked("/v1/messages", body, **{**SERVER, "reasoning_format": format})
    assert response.status_code == 200, "clients ask every model to think"
    assert server.process.requests[0].sampling.thinking_tokens == bound


def test_codexs_request_is_told_to_the_model():
    response, server = asked("/v1/responses", CODEX, {"session_id": "1", "originator": "codex_cli_rs"}, **SERVER)
    assert response.status_code == 200, response.text
    assert (
        history_of(server)
        == f"Go.<|im_end|>\n<|im_start|>assistant\n{CALLS}<|im_end|>\n{RESULTS}<|im_start|>assistant\n"
    )
    assert [tool["name"] for tool in events_of(response.text)[0]["response"]["tools"]] == ["Read", "LS"]


def test_a_response_has_thoughts_a_message_and_calls():
    answer = ResponseAnswer.model_validate_json(asked("/v1/responses", CODEX | {"stream": False}, **SERVER)[0].content)
    thought, message, *calls = answer.output
    assert thought.content[0].text == "Two files." and message.content[0].text.strip() == "I read them."
    assert [(call.name, json.loads(call.arguments)["path"]) for call in calls] == [("Read", "a.py"), ("Read", "b.py")]
    assert answer.usage.output_tokens_details.reasoning_tokens > 0 and answer.status == "completed"


def test_a_responses_events_add_up_to_it():
    events = streamed("/v1/responses", CODEX, **SERVER)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert items == events[-1]["response"]["output"]
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call", "function_call"]
    for item in items[2:]:
        mine = [event for event in events if event.get("item_id") == item["id"]]
        assert "".join(event["delta"] for event in mine[:-1]) == mine[-1]["arguments"] == item["arguments"]


def test_thoughts_come_back_sealed_and_are_told_again():
    first = asked("/v1/responses", CODEX | {"stream": False}, **SERVER)[0].json()["output"]
    kept = {"type": "reasoning", "summary": [], "encrypted_content": first[0]["encrypted_content"]}
    template = QWEN.replace("{{ m.content }}{% for call", "({{ m.reasoning_content }}){{ m.content }}{% for call")
    again = {**CODEX, "input": [*CODEX["input"][:2], kept, *first[1:]]}
    _, server = asked("/v1/responses", again, **{**SERVER, "template": template})
    assert "<|im_start|>assistant\n(Two files.)I read them." in history_of(server)


def test_tools_are_chosen_as_in_a_chat(grammars):
    for path, body, choice in (
        ("/v1/messages", CLAUDE_CODE, {"type": "tool", "name": "LS"}),
        ("/v1/responses", CODEX, {"type": "function", "name": "LS"}),
    ):
        assert asked(path, {**body, "tool_choice": choice}, **SERVER)[0].status_code == 200
        source = grammars.pop().source
        assert '\\"LS\\"' in source and '\\"Read\\"' not in source
    unknown = asked("/v1/responses", {**CODEX, "tool_choice": {"type": "function", "name": "rm"}}, **SERVER)[0]
    assert unknown.status_code == 400 and '"rm"' in unknown.json()["error"]["message"]


def test_events_are_those_of_openais_client():
    from openai._models import validate_type
    from openai.types import responses as theirs  # dear to import

    for event in streamed("/v1/responses", CODEX, **SERVER):
        validate_type(type_=theirs.ResponseStreamEvent, value=event)


def test_a_schema_is_what_the_answer_has_to_fit():
    server = Server(**SERVER)
    of_a_response = {
        "input": "a",
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}},
    }
    of_a_message = {
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 9,
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    }
    for endpoint, body in ((responses.ENDPOINT, of_a_response), (messages.ENDPOINTS[0], of_a_message)):
        parsed = parse(endpoint.body, json.dumps(body).encode(), None, server.settings).request
        grammar = endpoint.validate(parsed, server.context, ANYBODY).job.grammar
        assert '"required":["path"]' in grammar.source and grammar.kind == "lark"
