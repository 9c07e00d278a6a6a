"""The cases of Open Responses, as far as this server has what they are about: each a row with its name.

What they ask is that of https://www.openresponses.org/compliance: a text, a stream, a system's prompt, calls of tools, an image, a
conversation of several turns; and what we promise beyond: responses that go on with others, and errors. Whatever the case, an
answer is an `ResponseAnswer`, and a stream is numbered, opens and closes each item in its turn, and ends once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from server.schema.dialects.responses_answers import ResponseAnswer
from tests.server.api import scripted
from tests.server.api.dialects.asked import events_of, prompt_of
from tests.server.api.scripted import Server, run
from tests.server.api.test_tools import QWEN

pytestmark = pytest.mark.usefixtures("room_for_tools", "grammars")

PATH = "/v1/responses"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
THOUGHT = "<think>\nA city.\n</think>\n\nParis."


def message(role: str, text: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One of them.

    Attributes:
        name: what it is about.
        body: what is asked.
        reply: what the model says.
        items: the types of the items that come.
        holds: what is true of the answer, and of the prompt that was made for it.
        settings: the server's.
    """

    name: str
    body: dict[str, Any]
    reply: str = "Hello there."
    items: tuple[str, ...] = ("message",)
    holds: Callable[[ResponseAnswer, str], bool] = lambda answer, prompt: True
    settings: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case(
        name="basic text",
        body={"input": [message("user", "Say hello.")]},
        holds=lambda answer, prompt: (
            answer.output[0].content[0].text == "Hello there." and answer.usage.output_tokens == 13
        ),
    ),
    Case(
        name="a string is a text of the user",
        body={"input": "Say hello."},
        holds=lambda answer, prompt: "user\nSay hello." in prompt,
    ),
    Case(
        name="system prompt",
        body={"input": [message("system", "Speak as a pirate."), message("user", "Hi")]},
        holds=lambda answer, prompt: prompt.startswith("<|im_start|>system\nSpeak as a pirate."),
    ),
    Case(
        name="instructions",
        body={"input": "Hi", "instructions": "Speak as a pirate."},
        holds=lambda answer, prompt: answer.instructions in prompt,
    ),
    Case(
        name="multi-turn",
        body={
            "input": [message("user", "I am Ann."), message("assistant", "Hello, Ann!"), message("user", "Who am I?")]
        },
        holds=lambda answer, prompt: "assistant\nHello, Ann!<|im_end|>\n<|im_start|>user\nWho am I?" in prompt,
    ),
    Case(
        name="tool calling",
        body={"input": "The weather in Paris?", "tools": [WEATHER]},
        reply=CALL,
        items=("function_call",),
        holds=lambda answer, prompt: (
            (answer.output[0].name, answer.output[0].arguments) == ("get_weather", '{"city": "Paris"}')
            and answer.tools[0]["name"] == "get_weather"
            and '"name": "get_weather"' in prompt
        ),
    ),
    Case(
        name="several calls behind a text",
        body={"input": "Both.", "tools": [WEATHER]},
        reply=f"I look.\n{CALL}\n{CALL}",
        items=("message", "function_call", "function_call"),
        holds=lambda answer, prompt: answer.output[1].call_id != answer.output[2].call_id,
    ),
    Case(
        name="the results of a call",
        body={
            "tools": [WEATHER],
            "input": [
                message("user", "The weather?"),
                {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Paris"}'},
                {"type": "function_call_output", "call_id": "c1", "output": "18 degrees"},
            ],
        },
        holds=lambda answer, prompt: "<tool_response>18 degrees</tool_response>" in prompt,
    ),
    Case(
        name="reasoning",
        body={"input": "A city?", "include": ["reasoning.encrypted_content"]},
        reply=THOUGHT,
        items=("reasoning", "message"),
        settings={"reasoning_format": "think"},
        holds=lambda answer, prompt: (
            answer.output[0].content[0].text == "A city."
            and bool(answer.output[0].encrypted_content)
            and answer.usage.output_tokens_details.reasoning_tokens > 0
        ),
    ),
    Case(
        name="an answer that is cut",
        body={"input": "Hi", "max_output_tokens": 3},
        holds=lambda answer, prompt: (
            (answer.status, answer.incomplete_details.reason, answer.output[0].status)
            == ("incomplete", "max_output_tokens", "incomplete")
        ),
    ),
    Case(
        name="what was asked comes back",
        body={
            "input": "Hi",
            "metadata": {"a": "b"},
            "temperature": 0.5,
            "top_p": 0.9,
            "parallel_tool_calls": False,
            "store": False,
        },
        holds=lambda answer, prompt: (
            (answer.metadata, answer.temperature, answer.top_p) == ({"a": "b"}, 0.5, 0.9)
            and not answer.parallel_tool_calls
            and not answer.store
        ),
    ),
)
BY_NAME = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
# What is between the events of a response, by what an item is: its parts in their one order.
EVENTS = {
    "message": ["content_part.added", "output_text.delta", "output_text.done", "content_part.done"],
    "reasoning": ["content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done"],
    "function_call": ["function_call_arguments.delta", "function_call_arguments.done"],
}


async def answer_of(case: Case, server: Server, **more: Any) -> Any:
    response = await server.post(PATH, {**case.body, **more})
    assert response.status_code == 200, response.text
    return response


def ask(case: Case, **more: Any) -> tuple[Any, str]:
    async def asking():
        server = Server(case.reply, template=QWEN, **case.settings)
        response = await answer_of(case, server, **more)
        return response, prompt_of(server)

    return run(asking)


@BY_NAME
def test_the_answer(case):
    response, prompt = ask(case)
    answer = ResponseAnswer.model_validate_json(response.content)
    assert tuple(item.type for item in answer.output) == case.items
    assert answer.error is None and len({item.id for item in answer.output}) == len(answer.output)
    assert case.holds(answer, prompt)


@BY_NAME
def test_the_stream_in_its_order(case):
    events = events_of(ask(case, stream=True)[0].text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    answer = ResponseAnswer.model_validate(events[-1]["response"])
    expected = ["response.created", "response.in_progress"]
    for kind in case.items:
        expected += [
            "response.output_item.added",
            *(f"response.{name}" for name in EVENTS[kind]),
            "response.output_item.done",
        ]
    expected.append(f"response.{answer.status}")
    assert without_repeats([event["type"] for event in events]) == expected
    for index, item in enumerate(answer.output):
        mine = [event for event in events if event.get("output_index") == index]
        assert {event["item_id"] for event in mine if "item_id" in event} == {item.id}
        assert (
            mine[0]["item"]["status"] == "in_progress" and mine[-1]["item"] == events[-1]["response"]["output"][index]
        )
        said = item.arguments if item.type == "function_call" else item.content[0].text
        assert "".join(event["delta"] for event in mine if event["type"].endswith(".delta")) == said


def without_repeats(kinds: list[str]) -> list[str]:
    """Deltas in a row as one."""
    return [
        kind for kind, before in zip(kinds, ["", *kinds], strict=False) if kind != before or not kind.endswith(".delta")
    ]


@BY_NAME
def test_the_stream_is_the_answer(case):
    whole = ask(case)[0].json()
    streamed = events_of(ask(case, stream=True)[0].text)[-1]["response"]
    assert without_ids(streamed) == without_ids(whole)


def without_ids(response: dict[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in response.items() if not name.endswith("_at") and name != "id"}
    output = [
        {name: value for name, value in item.items() if name not in ("id", "call_id")} for item in response["output"]
    ]
    return {**told, "output": output}


@BY_NAME
def test_the_events_are_those_of_openais_client(case):
    from openai._models import validate_type
    from openai.types import responses as theirs  # dear to import

    for event in events_of(ask(case, stream=True)[0].text):
        validate_type(type_=theirs.ResponseStreamEvent, value=event)


def test_previous_response_id():
    async def turns():
        server = Server(CALL, template=QWEN)
        first = (await server.post(PATH, {"input": "The weather in Paris?", "tools": [WEATHER]})).json()
        result = {"type": "function_call_output", "call_id": first["output"][0]["call_id"], "output": "18 degrees"}
        body = {"input": [result], "previous_response_id": first["id"], "tools": [WEATHER], "stream": True}
        second = events_of((await server.post(PATH, body)).text)[-1]["response"]
        return first, second, prompt_of(server)

    first, second, prompt = run(turns)
    assert second["previous_response_id"] == first["id"]
    history = prompt.partition("<|im_start|>user\n")[2]
    call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
    assert history == (
        f"The weather in Paris?<|im_end|>\n<|im_start|>assistant\n{call}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>18 degrees</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


REFUSED = (
    ("image input", {"input": [{**message("user", ""), "content": [{"type": "input_image", "image_url": "data:,"}]}]},
     400, "input[0].content[0].type"),
    ("a file", {"input": [{**message("user", ""), "content": [{"type": "input_file", "file_id": "f"}]}]},
     400, "input[0].content[0].type"),
    ("no input", {}, 400, "input"),
    ("an empty input", {"input": []}, 400, "input"),
    ("another model", {"input": "Hi", "model": "gpt-x"}, 404, "model"),
    ("an unknown response", {"input": "Hi", "previous_response_id": "resp_1"}, 404, "previous_response_id"),
    ("a tool of OpenAI's", {"input": "Hi", "tools": [{"type": "code_interpreter"}]}, 400, "tools[0].type"),
    ("a temperature out of bounds", {"input": "Hi", "temperature": 3}, 400, "temperature"),
    ("an unknown field", {"input": "Hi", "temprature": 1}, 400, "temprature"),
    ("more than the context", {"input": "a" * scripted.CONTEXT * 40}, 400, "input"),
)  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "status", "param"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_errors(body, status, param, stream):
    response = run(lambda: Server(template=QWEN).post(PATH, {**body, "stream": stream}))
    error = response.json()["error"]
    assert (response.status_code, error["param"], set(error)) == (status, param, {"message", "type", "param", "code"})
