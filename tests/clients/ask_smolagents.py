"""smolagents: its OpenAI model, streams, an agent that calls tools and one that writes code."""

from asking import BASE, CHOSEN, FOUND, GREETING, KEY, MODEL, WEATHER, asked, tell
from smolagents import ChatMessage, CodeAgent, OpenAIModel, ToolCallingAgent, tool

CHAT = OpenAIModel(MODEL, api_base=BASE, api_key=KEY, temperature=0, max_tokens=120)
ONE_CALL = OpenAIModel(MODEL, api_base=BASE, api_key=KEY, temperature=0, max_tokens=120, parallel_tool_calls=False)


@tool
def get_weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: Its name.
    """
    asked.append(city)
    return FOUND


def say(text):
    return [ChatMessage(role="user", content=[{"type": "text", "text": text}])]


def plain():
    answer = CHAT(say(GREETING))
    assert answer.content and answer.token_usage.output_tokens


def stream():
    assert "".join(part.content or "" for part in CHAT.generate_stream(say(GREETING))) == CHAT(say(GREETING)).content


def structured():
    schema = {
        "type": "object",
        "properties": {"sure": {"type": "boolean"}},
        "required": ["sure"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "sure", "schema": schema, "strict": True}}
    assert CHAT(say("Are you sure?"), response_format=form).content.startswith("{")


def tool_loop():
    answer = ToolCallingAgent(tools=[get_weather], model=ONE_CALL, max_steps=3, verbosity_level=0).run(WEATHER)
    assert answer and (asked or not CHOSEN), (answer, asked)  # forced, it may answer by the tool for answers at once


def tool_loop_streamed():
    agent = ToolCallingAgent(tools=[get_weather], model=ONE_CALL, max_steps=3, verbosity_level=0, stream_outputs=True)
    assert len(list(agent.run(WEATHER, stream=True))) > 3 and (asked or not CHOSEN), asked


def code():
    agent = CodeAgent(tools=[], model=CHAT, max_steps=2, verbosity_level=0, use_structured_outputs_internally=True)
    assert str(agent.run("Compute 6 * 7 in Python and give it to final_answer.")) == "42"


tell("smolagents", plain, stream, structured, tool_loop, tool_loop_streamed, *((code,) if CHOSEN else ()))
