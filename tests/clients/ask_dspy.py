"""dspy: predictions by its adapters, a stream, an agent with tools, asking itself step by step."""

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

LM = dspy.LM(f"openai/{MODEL}", api_base=BASE, api_key=KEY, temperature=0, max_tokens=200, cache=False, num_retries=0)
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


def native_tools():
    signature = dspy.Signature("question: str, tools: list[dspy.Tool] -> calls: dspy.ToolCalls")
    with dspy.context(adapter=dspy.ChatAdapter(use_native_function_calling=True)):
        calls = dspy.Predict(signature)(question=WEATHER, tools=[dspy.Tool(get_weather)]).calls
    assert calls.tool_calls[0].name == "get_weather"


def tool_loop():
    was_asked(dspy.ReAct("question -> answer", tools=[get_weather], max_iters=3)(question=WEATHER).answer)


tell("dspy", plain, *((by_chat_adapter, by_json_adapter, native_tools, tool_loop) if CHOSEN else (by_json_adapter,)))
