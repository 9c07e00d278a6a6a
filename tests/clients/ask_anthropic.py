"""anthropic: messages, its stream helper, tools, counting tokens."""

import anthropic
from asking import CHOSEN, GREETING, KEY, MODEL, TOOL, URL, WEATHER, get_weather, tell, was_asked

CLIENT = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=300)
FUNCTION = TOOL["function"]
TOOLS = [{"name": FUNCTION["name"], "description": FUNCTION["description"], "input_schema": FUNCTION["parameters"]}]
SETTINGS = {"model": MODEL, "max_tokens": 60}


def say(text):
    return [{"role": "user", "content": text}]


def plain():
    answer = CLIENT.messages.create(messages=say(GREETING), system="Be brief.", **SETTINGS)
    assert answer.content[0].text and answer.usage.output_tokens


def stream():
    with CLIENT.messages.stream(messages=say(GREETING), **SETTINGS) as stream:
        assert "".join(stream.text_stream) == stream.get_final_text()


def events():
    kinds = [event.type for event in CLIENT.messages.create(messages=say(GREETING), stream=True, **SETTINGS)]
    assert kinds[:2] == ["message_start", "content_block_start"] and kinds[-2:] == ["message_delta", "message_stop"]
    assert {"content_block_delta", "content_block_stop"} <= set(kinds)


def as_an_agent_asks():
    hint = {"cache_control": {"type": "ephemeral"}}
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cch=1;"},
        {"type": "text", "text": "Be brief.", **hint},
    ]
    answer = CLIENT.messages.create(
        messages=[{"role": "user", "content": [{"type": "text", "text": GREETING, **hint}]}],
        system=system,
        thinking={"type": "enabled", "budget_tokens": 1024},
        metadata={"user_id": "ann"},
        extra_headers={"anthropic-beta": "interleaved-thinking-2025-05-14"},
        **SETTINGS,
    )
    assert answer.content and answer.stop_reason in ("end_turn", "max_tokens")


def tool_loop():
    messages = say(WEATHER)
    choice = {"type": "auto"} if CHOSEN else {"type": "tool", "name": "get_weather"}
    with CLIENT.messages.stream(messages=messages, tools=TOOLS, tool_choice=choice, **SETTINGS) as stream:
        first = stream.get_final_message()
    assert first.stop_reason == "tool_use"
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": get_weather(**block.input)}
        for block in first.content
        if block.type == "tool_use"
    ]
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    choice = {"type": "auto" if CHOSEN else "none"}
    second = CLIENT.messages.create(messages=messages, tools=TOOLS, tool_choice=choice, **SETTINGS)
    was_asked("".join(block.text for block in second.content if block.type == "text"))


def count_tokens():
    assert CLIENT.messages.count_tokens(model=MODEL, messages=say(GREETING)).input_tokens


tell("anthropic", plain, stream, events, as_an_agent_asks, tool_loop, count_tokens)
