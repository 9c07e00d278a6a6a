"""openai-agents: its runner over chat completions and over responses, streams, a typed output, tools, a hand-off."""

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from asking import ABOUT, BASE, CHOSEN, GREETING, KEY, MODEL, WEATHER, City, get_weather, is_city, tell, was_asked
from openai import AsyncOpenAI

set_tracing_disabled(True)
SETTINGS = {"temperature": 0, "max_tokens": 80}


def agent_of(kind=OpenAIChatCompletionsModel, name="helper", settings=None, **options):
    client = AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0, timeout=300)
    model = kind(model=MODEL, openai_client=client)
    return Agent(name=name, model=model, model_settings=ModelSettings(**SETTINGS, **settings or {}), **options)


async def plain():
    assert (await Runner.run(agent_of(instructions="Be brief."), GREETING)).final_output


async def stream():
    result = Runner.run_streamed(agent_of(), GREETING)
    kinds = [event.type async for event in result.stream_events()]
    assert kinds.count("raw_response_event") > 3 and result.final_output


async def typed_output():
    is_city((await Runner.run(agent_of(output_type=City), ABOUT)).final_output)


def with_tool(kind):
    return agent_of(
        kind, tools=[function_tool(get_weather)], settings=None if CHOSEN else {"tool_choice": "get_weather"}
    )


async def tool_loop():
    was_asked((await Runner.run(with_tool(OpenAIChatCompletionsModel), WEATHER)).final_output)


async def tool_loop_streamed():
    result = Runner.run_streamed(with_tool(OpenAIChatCompletionsModel), WEATHER)
    names = [event.name async for event in result.stream_events() if event.type == "run_item_stream_event"]
    assert {"tool_called", "tool_output"} <= set(names), names
    was_asked(result.final_output)


async def hand_off():
    other = agent_of(name="greeter", instructions="Greet.")
    chosen = {"tool_choice": "transfer_to_greeter"}
    first = agent_of(name="porter", instructions="Transfer to the greeter.", handoffs=[other], settings=chosen)
    assert (await Runner.run(first, GREETING)).last_agent.name == "greeter"


async def responses():
    was_asked((await Runner.run(with_tool(OpenAIResponsesModel), WEATHER)).final_output)
    is_city((await Runner.run(agent_of(OpenAIResponsesModel, output_type=City), ABOUT)).final_output)


tell("openai-agents", plain, stream, typed_output, tool_loop, tool_loop_streamed, hand_off, responses)
