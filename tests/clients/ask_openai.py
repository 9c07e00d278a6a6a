"""openai: completions, chat, streams, `.parse`, the stream helper, tools, responses, refusals."""

import json
import time

import openai
from asking import (
    ABOUT,
    BASE,
    CHOICE,
    CHOSEN,
    CITIES,
    GREETING,
    KEY,
    MODEL,
    TOOL,
    WEATHER,
    City,
    get_weather,
    is_city,
    tell,
    was_asked,
)
from pydantic import BaseModel

CLIENT = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0, timeout=300)
CHAT = CLIENT.chat.completions
SETTINGS = {"model": MODEL, "temperature": 0, "max_tokens": 24}


def say(text):
    return [{"role": "user", "content": text}]


class Weather(BaseModel):
    """The weather in a city."""

    city: CITIES


def models():
    assert MODEL in [model.id for model in CLIENT.models.list()]


def completion():
    whole = CLIENT.completions.create(prompt="One, two,", **SETTINGS)
    parts = CLIENT.completions.create(prompt="One, two,", stream=True, **SETTINGS)
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text


def chat():
    whole = CHAT.create(messages=say(GREETING), **SETTINGS)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    parts = list(CHAT.create(messages=say(GREETING), **options, **SETTINGS))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens


async def chat_async():
    async with openai.AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0) as client:
        stream = await client.chat.completions.create(messages=say(GREETING), stream=True, **SETTINGS)
        assert [part async for part in stream]


def parse():
    is_city(
        CHAT.parse(messages=say(ABOUT), response_format=City, **SETTINGS | {"max_tokens": 80}).choices[0].message.parsed
    )


def parse_a_tool():
    offered = {"tools": [openai.pydantic_function_tool(Weather, name="get_weather")], "tool_choice": "required"}
    answer = CHAT.parse(messages=say(WEATHER), parallel_tool_calls=False, **offered, **SETTINGS | {"max_tokens": 60})
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)


def stream_helper():
    with CHAT.stream(messages=say(ABOUT), response_format=City, **SETTINGS | {"max_tokens": 80}) as stream:
        kinds = {event.type for event in stream}
        is_city(stream.get_final_completion().choices[0].message.parsed)
    assert {"content.delta", "content.done", "chunk"} <= kinds


def tool_loop():
    loop(lambda **body: CHAT.create(**body).choices[0])


def tool_loop_streamed():
    def turn(**body):
        with CHAT.stream(**body) as stream:
            for _ in stream:
                pass
            return stream.get_final_completion().choices[0]

    loop(turn)


def loop(turn):
    messages, body = say(WEATHER), SETTINGS | {"max_tokens": 60, "tools": [TOOL]}
    first = turn(messages=messages, tool_choice=CHOICE, **body)
    assert first.finish_reason == "tool_calls"
    messages.append(first.message.model_dump(exclude_none=True, exclude={"parsed"}))
    for call in first.message.tool_calls:
        found = get_weather(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": found})
    second = turn(messages=messages, tool_choice="auto" if CHOSEN else "none", **body)
    assert second.finish_reason in ("stop", "length")
    was_asked(second.message.content)


def responses():
    settings = {"model": MODEL, "temperature": 0, "max_output_tokens": 24}
    first = CLIENT.responses.create(input=GREETING, **settings)
    assert first.output_text
    second = CLIENT.responses.create(input="Again.", previous_response_id=first.id, **settings)
    assert second.previous_response_id == first.id
    with CLIENT.responses.stream(input=GREETING, **settings) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text == first.output_text


def responses_background():
    settings = {"model": MODEL, "temperature": 0, "max_output_tokens": 24, "input": GREETING, "background": True}
    first = CLIENT.responses.create(**settings)
    while first.status in ("queued", "in_progress"):
        time.sleep(0.1)
        first = CLIENT.responses.retrieve(first.id)
    assert first.output_text, first.status
    with CLIENT.responses.create(stream=True, **settings) as stream:
        head = [next(stream) for _ in range(3)]  # and the connection is closed
    rest = list(CLIENT.responses.retrieve(head[0].response.id, stream=True, starting_after=head[-1].sequence_number))
    assert [event.sequence_number for event in head + rest] == list(range(len(head + rest)))
    assert rest[-1].response.output_text == first.output_text
    cancelled = CLIENT.responses.cancel(CLIENT.responses.create(**settings | {"max_output_tokens": 1000}).id)
    assert cancelled.status in ("cancelled", "completed"), cancelled.status
    assert CLIENT.responses.input_tokens.count(model=MODEL, input=GREETING).input_tokens == first.usage.input_tokens


def responses_parse():
    is_city(CLIENT.responses.parse(model=MODEL, input=ABOUT, temperature=0, text_format=City).output_parsed)


def responses_tool_loop():
    tool = {"type": "function", **TOOL["function"], "strict": True}
    body = {"model": MODEL, "temperature": 0, "max_output_tokens": 60, "tools": [tool]}
    items = say(WEATHER)
    choice = "auto" if CHOSEN else {"type": "function", "name": "get_weather"}
    first = CLIENT.responses.create(input=items, tool_choice=choice, **body)
    calls = [item for item in first.output if item.type == "function_call"]
    items += [item.model_dump(exclude_none=True) for item in first.output]
    for call in calls:
        found = get_weather(**json.loads(call.arguments))
        items.append({"type": "function_call_output", "call_id": call.call_id, "output": found})
    was_asked(CLIENT.responses.create(input=items, tool_choice="auto" if CHOSEN else "none", **body).output_text)


def embeddings():
    texts = ["a cat", "a dog"]
    found = CLIENT.embeddings.create(model=MODEL, input=texts).data  # which asks for base64
    again = CLIENT.embeddings.create(model=MODEL, input=texts, encoding_format="float").data
    for one, other in zip(found, again, strict=True):
        assert max(abs(a - b) for a, b in zip(one.embedding, other.embedding, strict=True)) < 1e-5


def refusal(kind, client=CLIENT, **wrong):
    try:
        client.chat.completions.create(messages=say(GREETING), **SETTINGS | wrong)
    except kind as error:
        return error
    raise AssertionError(f"{wrong} was taken")


def refusals():
    assert refusal(openai.BadRequestError, temperature=9).param == "temperature"
    assert refusal(openai.NotFoundError, model="another").code == "model_not_found"
    assert refusal(openai.BadRequestError, extra_body={"temprature": 1}).param == "temprature"
    another = openai.OpenAI(base_url=BASE, api_key="another", max_retries=0)
    assert refusal(openai.AuthenticationError, another).code == "invalid_api_key"
    nobody = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key=KEY, max_retries=0)
    assert refusal(openai.APIConnectionError, nobody)
    assert refusal(openai.APITimeoutError, CLIENT.with_options(timeout=0.001))


def a_limit_waited_for():
    """A key that may ask 20 times a minute waits some 3 seconds then, which is longer than a client would of itself."""
    hasty = openai.OpenAI(base_url=BASE, api_key="limited", max_retries=0, timeout=300)
    patient = hasty.with_options(max_retries=1)
    for _ in range(40):
        try:
            answer = hasty.embeddings.with_raw_response.create(model=MODEL, input="a")
            assert answer.headers["x-ratelimit-limit-requests"] == "20"
        except openai.RateLimitError as error:
            assert error.code == "rate_limit_exceeded" and float(error.response.headers["retry-after"]) > 1
            assert patient.embeddings.create(model=MODEL, input="a").data
            return
    raise AssertionError("no limit")


CHECKS = (models, completion, chat, chat_async, parse, parse_a_tool, stream_helper, tool_loop, tool_loop_streamed)
OTHERS = (embeddings, refusals, a_limit_waited_for)
tell("openai", *CHECKS, responses, responses_background, responses_parse, responses_tool_loop, *OTHERS)
