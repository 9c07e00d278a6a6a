"""Past calls and results of tools, as clients send them, make the prompt that transformers makes of the same template."""

import copy
import json

import pytest

from server.text.chat_renderer import ChatRenderer
from server.text.chat_template import ChatTemplate
from server.text.formats.tool_formats import tool_format_of
from server.text.tool_shapes import object_of

# In the manner of templates in public use: tools in the system's message, arguments as JSON or between tags, results in turns.
_TOOLS = """{%- if tools %}
    {{- '<|im_start|>system\\n' + (messages[0].content if messages[0].role == 'system' else 'Be helpful.') + '\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools> <tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- elif message.role != 'system' %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function %}
CALL
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
CALLS = {
    "hermes": """{{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
{{- call.arguments | tojson }}{{- '}\\n</tool_call>' }}""",
    "qwen3_coder": """{{- '\\n<tool_call>\\n<function=' + call.name + '>\\n' }}
{%- for key, value in call.arguments | items %}
    {{- '<parameter=' + key + '>\\n' }}
    {{- value | tojson if value is mapping or (value is sequence and value is not string) else value | string }}
    {{- '\\n</parameter>\\n' }}
{%- endfor %}
{{- '</function>\\n</tool_call>' }}""",
    "glm45": """{{- '\\n<tool_call>' + call.name }}
{%- for key, value in call.arguments.items() %}
    {{- '<arg_key>' + key + '</arg_key><arg_value>' + (value if value is string else value | tojson) + '</arg_value>' }}
{%- endfor %}
{{- '</tool_call>' }}""",
}
ARGUMENTS = {"city": "Zürich <b> & 'x' \"y\"", "days": [1, 2.0, None], "z": {"b": True, "a": "\n"}}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "a < b & 'é'", "parameters": PARAMETERS}}


def called(*arguments, content=None):
    calls = [
        {"id": f"call_{i}", "type": "function", "function": {"name": "weather", "arguments": json.dumps(each)}}
        for i, each in enumerate(arguments)
    ]
    return {"role": "assistant", "content": content or "", "tool_calls": calls}


def result(text, i=0):
    return {"role": "tool", "tool_call_id": f"call_{i}", "content": text}


USER = {"role": "user", "content": "Weather?"}
CONVERSATIONS = [
    [USER],
    [USER, called(ARGUMENTS), result("18 degrees")],
    [{"role": "system", "content": "Short."}, USER, called({}, ARGUMENTS, content="I look."), result("1"), result("2", 1)],
    [USER, called(ARGUMENTS), result("18"), {"role": "assistant", "content": "It is 18."}, {**USER, "content": "And now?"}],
]  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=len)
def test_a_history_with_calls_as_transformers(reference, name, messages):
    source = _TOOLS.replace("CALL\n", CALLS[name] + "\n")
    renderer = ChatRenderer(ChatTemplate(source), lambda text, special: [])
    theirs = copy.deepcopy(messages)
    for message in theirs:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])  # what transformers wants
    expected = reference.apply_chat_template(
        theirs, chat_template=source, tools=[TOOL], tokenize=False, add_generation_prompt=True
    )
    assert renderer.render(messages, [TOOL]) == expected
    assert "weather" in expected and expected.endswith("<|im_start|>assistant\n")
    assert tool_format_of(source).name == name


def test_past_arguments_that_utf8_cannot_hold_stay_the_text_they_were():
    """A model may write half a surrogate pair as an escape, and its client sends the call back."""
    renderer = ChatRenderer(ChatTemplate(_TOOLS.replace("CALL\n", CALLS["hermes"] + "\n")), lambda text, special: [])
    call = called({})
    call["tool_calls"][0]["function"]["arguments"] = text = '{"city": "\\ud83d"}'
    prompt = renderer.render([USER, call, result("18")], [TOOL])
    assert json.dumps(text) in prompt and prompt.encode()
    assert object_of('{"city": "\\ud83d\\ude00"}') == {"city": "😀"}
