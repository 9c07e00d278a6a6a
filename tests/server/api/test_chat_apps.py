"""Chat applications' requests, in the shapes that they send: Open WebUI's conversations and tasks, Continue's agent and typing aid.

Each has a golden prompt, and what the application reads of the answer.
"""

import json

import pytest

from server.schema.answers import ChatAnswer
from tests.server.api.dialects.asked import prompt_of
from tests.server.api.scripted import Server, run
from tests.server.api.test_tools import QWEN

pytestmark = pytest.mark.usefixtures("room_for_tools", "grammars")

CHAT = "/v1/chat/completions"
CALL = '<tool_call>\n{"name": "get_time", "arguments": {"zone": "CET"}}\n</tool_call>'
# Where a tool comes from an OpenAPI document, Open WebUI says twice that it is a function.
TIME = {
    "type": "function",
    "function": {
        "type": "function",
        "name": "get_time",
        "description": "The time.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string", "description": ""}}, "required": []},
    },
}
WEBUI_HEADERS = {
    "Authorization": "Bearer none",
    "X-OpenWebUI-User-Name": "Ann%20B",
    "X-OpenWebUI-User-Id": "5f2c",
    "X-OpenWebUI-User-Email": "ann@example.org",
    "X-OpenWebUI-User-Role": "user",
    "X-OpenWebUI-Chat-Id": "0b1d",
}
WEBUI = {
    "stream": True,
    "model": "small",
    "messages": [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [{"type": "text", "text": "What time is it?"}]},
    ],
    "temperature": 0.8,
    "top_p": 0.9,
    "min_p": 0.0,
    "top_k": 40,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "seed": 7,
    "max_tokens": 128,
    "stop": ["<end>"],
    "logit_bias": {},
    "stream_options": {"include_usage": True},
    "tools": [TIME],
}
WEBUI_TURN = [
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "index": 0,
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_time", "arguments": '{"zone": "CET"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
]
WEBUI_TITLE = {
    "model": "small",
    "messages": [{"role": "user", "content": "### Task:\nGenerate a concise title."}],
    "stream": False,
    "max_completion_tokens": 1000,
}
CONTINUE_HEADERS = {"Authorization": "Bearer none", "api-key": "none", "x-api-key": "none"}
CONTINUE = {
    "messages": [
        {"role": "system", "content": "<important_rules>\n  You are in agent mode.\n</important_rules>"},
        {"role": "user", "content": "List the files."},
        {
            "role": "assistant",
            "content": " ",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": '{"dirPath": "."}'}}
            ],
        },
        {"role": "tool", "content": "a.py", "tool_call_id": "c1"},
    ],
    "model": "small",
    "max_tokens": 4096,
    "stream": True,
    "stop": ["<|im_end|>", "<|endoftext|>"],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "ls",
                "description": "Lists.",
                "parameters": {"type": "object", "properties": {"dirPath": {"type": "string"}}},
            },
        }
    ],
    "parallel_tool_calls": False,
}
FIM = [
    f"<|{name}|>"
    for name in ("endoftext", "fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
]
CONTINUE_TAB = {
    "prompt": "<|fim_prefix|>def add(a, b):\n    <|fim_suffix|>\n<|fim_middle|>",
    "model": "small",
    "max_tokens": 4096,
    "temperature": 0.01,
    "stream": True,
    "stop": [*FIM, "<|im_start|>", "<|im_end|>", "\n\n", "\r\n\r\n", "/src/", "#- coding: utf-8", "```"],
}


def sent(path, body, headers, reply):
    async def asking():
        server = Server(reply, template=QWEN)
        response = await server.post(path, body, headers=headers)
        assert response.status_code == 200, response.text
        return response, server

    return run(asking)


def chunks_of(response):
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_open_webuis_conversation():
    response, server = sent(CHAT, WEBUI, WEBUI_HEADERS, f"I look.\n{CALL}")
    assert prompt_of(server).partition("<|im_end|>\n")[2] == (
        "<|im_start|>system\nYou are kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nWhat time is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    chunks = chunks_of(response)
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] > 0, "what it shows under an answer"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "I look.\n"
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert calls[0]["id"] and calls[0]["function"]["name"] == "get_time"
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"zone": "CET"}
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
    sampling = server.process.requests[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed, sampling.max_tokens) == (0.8, 40, 7, 128)


def test_open_webuis_next_turn():
    body = {**WEBUI, "messages": [*WEBUI["messages"], *WEBUI_TURN]}
    _, server = sent(CHAT, body, WEBUI_HEADERS, "Noon.")
    call = '<tool_call>{"name": "get_time", "arguments": {"zone": "CET"}}</tool_call>'
    assert prompt_of(server).endswith(
        f"<|im_start|>assistant\n{call}<|im_end|>\n<|im_start|>user\n<tool_response>12:00</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_open_webuis_task():
    response, server = sent(CHAT, WEBUI_TITLE, WEBUI_HEADERS, '{"title": "Time"}')
    answer = ChatAnswer.model_validate_json(response.content)
    assert answer.choices[0].message.content == '{"title": "Time"}' and answer.choices[0].finish_reason == "stop"
    assert (
        prompt_of(server).startswith("<|im_start|>user\n### Task:")
        and server.process.requests[0].sampling.max_tokens == 1000
    )


def test_continues_agent():
    response, server = sent(CHAT, CONTINUE, CONTINUE_HEADERS, "One file.")
    call = '<tool_call>{"name": "ls", "arguments": {"dirPath": "."}}</tool_call>'
    assert prompt_of(server).partition("<|im_start|>user\n")[2] == (
        f"List the files.<|im_end|>\n<|im_start|>assistant\n {call}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>a.py</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks_of(response)]
    assert "".join(delta.get("content") or "" for delta in deltas) == "One file."


def test_continues_completion_while_one_types():
    response, server = sent("/v1/completions", CONTINUE_TAB, CONTINUE_HEADERS, "return a + b\n\ndef more():")
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks_of(response)) == "return a + b"
    assert server.context.tokenizer.decode(server.process.requests[0].prompt_ids) == CONTINUE_TAB["prompt"]


def test_both_list_the_models():
    response = run(lambda: Server().client.get("/v1/models", headers=CONTINUE_HEADERS))
    assert [model["id"] for model in response.json()["data"]] == ["small", "org/small"]
