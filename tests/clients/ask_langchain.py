"""langchain-openai: messages, streams, structured output by each of its methods, an agent of langchain."""

from asking import ABOUT, BASE, CHOSEN, GREETING, KEY, MODEL, WEATHER, City, get_weather, is_city, tell, was_asked
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

CHAT = ChatOpenAI(model=MODEL, base_url=BASE, api_key=KEY, temperature=0, max_tokens=80, max_retries=0)


@wrap_model_call
def forced_once(request, handler):
    """A small model calls in the first turn, and not in the second."""
    turn = "none" if request.messages[-1].type == "tool" else "get_weather"
    return handler(request.override(tool_choice=turn))


def agent_of(**options):
    return create_agent(CHAT, [tool(get_weather)], middleware=() if CHOSEN else (forced_once,), **options)


def say(text):
    return {"messages": [{"role": "user", "content": text}]}


def invoke():
    answer = CHAT.invoke(GREETING)
    assert answer.content and answer.usage_metadata["output_tokens"]


def stream():
    parts = list(CHAT.stream(GREETING, stream_usage=True))
    assert "".join(part.content for part in parts) == CHAT.invoke(GREETING).content


async def batch():
    answers = await CHAT.abatch([GREETING, GREETING])
    assert answers[0].content == answers[1].content


def structured_by_schema():
    is_city(CHAT.with_structured_output(City, method="json_schema").invoke(ABOUT))


def structured_by_tool():
    is_city(CHAT.with_structured_output(City, method="function_calling").invoke(ABOUT))


def agent():
    was_asked(agent_of().invoke(say(WEATHER))["messages"][-1].text)


def agent_streamed():
    texts = []
    for message, _ in agent_of().stream(say(WEATHER), stream_mode="messages"):
        texts += [message.text] if message.type == "AIMessageChunk" else []
    was_asked("".join(texts))


def responses():
    answer = ChatOpenAI(model=MODEL, base_url=BASE, api_key=KEY, max_tokens=24, use_responses_api=True).invoke(GREETING)
    assert answer.text


tell(
    "langchain-openai",
    invoke,
    stream,
    batch,
    structured_by_schema,
    structured_by_tool,
    agent,
    agent_streamed,
    responses,
)
