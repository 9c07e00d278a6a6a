"""pydantic-ai: agents with text, streams, output by a tool, by a schema and by the prompt, a loop of tools, the responses model."""

from asking import ABOUT, BASE, CHOSEN, GREETING, KEY, MODEL, WEATHER, City, get_weather, is_city, tell, was_asked
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

PROVIDER = OpenAIProvider(base_url=BASE, api_key=KEY)
CHAT = OpenAIChatModel(MODEL, provider=PROVIDER)
SETTINGS = {"temperature": 0, "max_tokens": 80, "parallel_tool_calls": CHOSEN}


def agent_of(model=CHAT, **options):
    return Agent(model, model_settings=SETTINGS, **options)


def plain():
    assert agent_of().run_sync(GREETING).output


async def stream():
    async with agent_of(instructions="Be brief.").run_stream(GREETING) as result:
        parts = [part async for part in result.stream_text(delta=True, debounce_by=None)]
    assert len(parts) > 1


def output_by_tool():
    is_city(agent_of(output_type=ToolOutput(City)).run_sync(ABOUT).output)


def output_by_schema():
    is_city(agent_of(output_type=NativeOutput(City)).run_sync(ABOUT).output)


def tool_loop():
    if CHOSEN:
        was_asked(agent_of(tools=[get_weather]).run_sync(WEATHER).output)
    else:  # each turn must call, until it calls the output
        agent = agent_of(tools=[get_weather], output_type=ToolOutput(City))
        is_city(agent.run_sync(WEATHER + ABOUT).output)


def responses():
    assert agent_of(OpenAIResponsesModel(MODEL, provider=PROVIDER)).run_sync(GREETING).output


tell("pydantic-ai-slim", plain, stream, output_by_tool, output_by_schema, tool_loop, responses)
