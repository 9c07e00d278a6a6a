"""litellm: its `openai/` provider and `hosted_vllm/`, streams, `response_format` by a model, tools."""

import json

import litellm
from asking import (
    ABOUT,
    BASE,
    CHOICE,
    CHOSEN,
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

SETTINGS = {"api_base": BASE, "api_key": KEY, "temperature": 0, "max_tokens": 60, "num_retries": 0}


def say(text):
    return [{"role": "user", "content": text}]


def providers():
    for provider in ("openai", "hosted_vllm"):
        answer = litellm.completion(model=f"{provider}/{MODEL}", messages=say(GREETING), **SETTINGS)
        assert answer.choices[0].message.content and answer.usage.completion_tokens


def stream():
    parts = list(litellm.completion(model=f"openai/{MODEL}", messages=say(GREETING), stream=True, **SETTINGS))
    assert litellm.stream_chunk_builder(parts).choices[0].message.content


async def asynchronous():
    assert (await litellm.acompletion(model=f"openai/{MODEL}", messages=say(GREETING), **SETTINGS)).choices


def text_completion():
    assert (
        litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt="One, two,", **SETTINGS).choices[0].text
    )


def structured():
    answer = litellm.completion(model=f"openai/{MODEL}", messages=say(ABOUT), response_format=City, **SETTINGS)
    is_city(City.model_validate_json(answer.choices[0].message.content))


def tool_loop():
    messages, settings = say(WEATHER), SETTINGS | {"model": f"hosted_vllm/{MODEL}", "tools": [TOOL]}
    first = litellm.completion(messages=messages, tool_choice=CHOICE, **settings)
    assert first.choices[0].finish_reason == "tool_calls"
    messages.append(first.choices[0].message)
    for call in first.choices[0].message.tool_calls:
        found = get_weather(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": found})
    second = litellm.completion(messages=messages, tool_choice="auto" if CHOSEN else "none", **settings)
    was_asked(second.choices[0].message.content)


def responses():
    answer = litellm.responses(
        model=f"openai/{MODEL}", input=GREETING, api_base=BASE, api_key=KEY, max_output_tokens=24
    )
    assert answer.output


tell("litellm", providers, stream, asynchronous, text_completion, structured, tool_loop, responses)
