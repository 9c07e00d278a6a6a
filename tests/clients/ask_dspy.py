"""dspy: predictions by its adapters, a stream, an agent with tools, asking itself step by step."""

import contextlib

import dspy
from asking import (
    ABOUT,
    BASE,
    CHOSEN,
    GREETING,
    KEY,
    MODEL,
    WEATHER,
    City,
    get_weather,
    is_city,
    tell,
    was_asked,
)
from dspy.lm15 import AccessPolicy, ModelSupport, OpenAIChatCompat, ProviderDefinition, register_provider
from dspy.utils.exceptions import AdapterParseError

# Of a server that it does not know it believes nothing, and asks for no form of the answer.
SERVER = ProviderDefinition.chat(AccessPolicy("headrace", base_url=BASE), compat=OpenAIChatCompat.preset("vllm"))
register_provider(SERVER, supports=ModelSupport(function_calling=True, response_schema=True))
SETTINGS = {"api_key": KEY, "temperature": 0, "max_tokens": 200, "cache": False, "num_retries": 0}
LM = dspy.LM(f"headrace/{MODEL}", **SETTINGS)
dspy.configure(lm=LM)


class Describe(dspy.Signature):
    """Describe the city that the text is about."""

    text: str = dspy.InputField()
    city: City = dspy.OutputField()


def plain():
    assert LM(GREETING)[0]


def by_chat_adapter():
    is_city(dspy.Predict(Describe)(text=ABOUT).city)


def by_json_adapter():
    with dspy.context(adapter=dspy.JSONAdapter()):
        is_city(dspy.Predict(Describe)(text=ABOUT).city)


def by_json_object():
    lm = dspy.LM(f"openai/{MODEL}", engine="litellm", api_base=BASE, **SETTINGS)
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()), contextlib.suppress(AdapterParseError):
        dspy.Predict(Describe)(text=ABOUT)
    (text,) = lm.history[-1]["outputs"]
    assert str(text).startswith("{"), text


def native_tools():
    signature = dspy.Signature("question: str, tools: list[dspy.Tool] -> calls: dspy.ToolCalls")
    with dspy.context(adapter=dspy.ChatAdapter(use_native_function_calling=True)):
        calls = dspy.Predict(signature)(question=WEATHER, tools=[dspy.Tool(get_weather)]).calls
    assert calls.tool_calls[0].name == "get_weather"


def tool_loop():
    was_asked(dspy.ReAct("question -> answer", tools=[get_weather], max_iters=3)(question=WEATHER).answer)


CHECKS = (by_json_adapter, by_json_object, *((by_chat_adapter, native_tools, tool_loop) if CHOSEN else ()))
tell("dspy", plain, *CHECKS)
