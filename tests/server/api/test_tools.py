"""Chat with tools and reasoning over a scripted engine: what the model is told, and what its answer is read as."""

import json

import pytest

from server.structured.compiler import Compiled, GrammarCompiler
from server.text.formats.tool_formats import REASONING_FORMATS, ReasoningFormat
from tests.server.api import scripted
from tests.server.api.scripted import END, Server, run
from tests.server.text.transcripts import JSON_OSLO, JSON_PARIS, OSLO, PARIS

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "Weather in Paris?"}
QWEN = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "Call as <tool_call></tool_call>.<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>{{ m.content }}</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls %}<tool_call>"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>{% endfor %}<|im_end|>\n'
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = scripted.CHATML.replace(
    "assistant\n", "assistant\n{% if enable_thinking %}<think>\n{% endif %}{# </think> #}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says what the weather is.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ADD = {"type": "function", "function": {"name": "add"}}
TOOLS = [WEATHER, ADD]
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
HISTORY = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
]


@pytest.fixture(autouse=True)
def room_for_tools(monkeypatch):
    """A token is a byte here, and tools have many."""
    monkeypatch.setattr(scripted, "CONTEXT", 8192)


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """The grammars that were asked for; what compiles them is a process, and what they let through is tested by themselves."""
    grammars = []

    async def compiled(self, grammar, engine, owner):
        grammars.append(grammar)
        return Compiled(f"grammar {len(grammars)}", "vocabulary")

    monkeypatch.setattr(GrammarCompiler, "compile", compiled)
    return grammars


def prompts_of(server) -> list[str]:
    return [bytes(b for b in each.prompt_ids if b < 256).decode() for each in server.process.requests]


def ask(reply, body, template=QWEN, **settings):
    """The status, the answer and the prompt."""

    async def test():
        server = Server(reply, template=template, **settings)
        response = await server.post(CHAT, {"messages": [USER], **body})
        return response.status_code, response.json(), prompts_of(server)

    return run(test)


def answered(reply, body, **kwargs):
    status, answer, _ = ask(reply, body, **kwargs)
    assert status == 200, answer
    return answer["choices"][0]


def streamed(reply, body, template=QWEN):
    async def test():
        server = Server(reply, template=template)
        response = await server.post(CHAT, {"messages": [USER], "stream": True, **body})
        lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert lines.pop() == "[DONE]"
        return [json.loads(line) for line in lines]

    return run(test)


def added_up(chunks):
    """The message of the streamed deltas, as clients put it together."""
    message, reasons = {"content": "", "tool_calls": []}, []
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content", "")
            if "reasoning" in delta:
                assert delta["reasoning"] == delta["reasoning_content"]
                message["reasoning"] = message.get("reasoning", "") + delta["reasoning"]
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    assert call["index"] == len(message["tool_calls"]) and call["type"] == "function"
                    message["tool_calls"].append([call["function"]["name"], ""])
                else:
                    assert "name" not in call["function"]
                message["tool_calls"][call["index"]][1] += call["function"]["arguments"]
            reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    return message, reasons


TWO = f"Let me see.\n<tool_call>\n{JSON_PARIS}\n</tool_call>\n<tool_call>\n{JSON_OSLO}\n</tool_call>"


def test_an_answer_with_calls():
    choice = answered(TWO, {"tools": TOOLS})
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] == "Let me see.\n"
    calls = message["tool_calls"]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in calls] == [PARIS, OSLO]
    assert len({call["id"] for call in calls}) == 2 and all(call["id"].startswith("call_") for call in calls)


def test_a_stream_has_the_same_in_deltas():
    chunks = streamed(TWO, {"tools": TOOLS})
    message, reasons = added_up(chunks)
    assert message == {"content": "Let me see.\n", "tool_calls": [list(PARIS), list(OSLO)]}
    assert reasons == ["tool_calls"]
    assert len(chunks) > 50, "as they come"


def test_without_text_the_content_is_null_and_without_calls_nothing_is_new():
    assert answered(f"<tool_call>{JSON_PARIS}</tool_call>", {"tools": TOOLS})["message"]["content"] is None
    choice = answered("Just words.", {"tools": TOOLS})
    assert choice["message"] == {"role": "assistant", "content": "Just words.", "refusal": None}
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "body", [{}, {"tools": TOOLS, "tool_choice": "none"}, {"functions": [], "function_call": "none"}]
)
def test_without_tools_a_call_is_text(body):
    text = f"<tool_call>{JSON_PARIS}</tool_call>"
    assert answered(text, body)["message"]["content"] == text


def test_a_call_that_is_cut_off_says_length():
    choice = answered(f"<tool_call>{JSON_PARIS}", {"tools": TOOLS, "max_tokens": 54})
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "'}


def test_the_older_form():
    body = {"functions": [WEATHER["function"], ADD["function"]], "function_call": "auto"}
    choice = answered(TWO, body)
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "weather", "arguments": PARIS[1]}
    assert "tool_calls" not in choice["message"]
    deltas = [choice["delta"] for chunk in streamed(TWO, body) for choice in chunk["choices"]]
    parts = [delta["function_call"] for delta in deltas if "function_call" in delta]
    assert parts[0] == {"name": "weather", "arguments": ""}
    assert "".join(part["arguments"] for part in parts) == PARIS[1]


def test_logprobs_and_ids_of_all_tokens_come_with_the_events():
    body = {"tools": TOOLS, "logprobs": True, "return_token_ids": True}
    text = f"Hm <tool_call>{JSON_PARIS}</tool_call>"
    choices = [choice for chunk in streamed(text, body) for choice in chunk["choices"]]
    ids = [token for choice in choices for token in choice.get("token_ids", ())]
    assert ids == [*text.encode(), END]
    assert sum(len(choice["logprobs"]["content"]) for choice in choices if choice["logprobs"]) == len(ids)


def test_what_the_model_is_told():
    _, _, (prompt,) = ask("ok", {"tools": TOOLS, "messages": HISTORY})
    assert json.dumps(WEATHER) in prompt and json.dumps(ADD) in prompt
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>' in prompt
    assert "<tool_response>sunny</tool_response>" in prompt


def test_a_template_without_tools_has_them_told_in_words():
    system = {"role": "system", "content": "Be brief."}
    _, _, (prompt,) = ask("ok", {"tools": TOOLS, "messages": [system, *HISTORY]}, template=scripted.CHATML)
    assert prompt.startswith("system\nBe brief.\n\n# Tools\n") and json.dumps(WEATHER) in prompt
    assert 'assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>' in prompt
    assert "user\n<tool_response>\nsunny\n</tool_response>" in prompt
    choice = answered(f"<tool_call>{JSON_PARIS}</tool_call>", {"tools": TOOLS}, template=scripted.CHATML)
    assert choice["finish_reason"] == "tool_calls"


def test_tokenize_counts_what_the_model_is_told_of_tools():
    async def test():
        server = Server("ok", template=QWEN)
        response = await server.post("/tokenize", {"messages": HISTORY, "tools": TOOLS})
        await server.post(CHAT, {"messages": HISTORY, "tools": TOOLS})
        return response.json()["tokens"], server.process.requests[0].prompt_ids

    tokens, prompt = run(test)
    assert tokens == list(prompt)


def test_or_they_are_refused():
    status, answer, _ = ask("ok", {"tools": TOOLS}, template=scripted.CHATML, tool_template="refuse")
    assert status == 400 and "leave out the tools" in answer["error"]["message"]
    assert ask("ok", {"tools": TOOLS}, tool_template="refuse")[0] == 200


def test_older_history_and_odd_arguments_are_told_as_well():
    call = {"name": "weather", "arguments": '{"city": "Par'}
    history = [
        USER,
        {"role": "assistant", "function_call": call},
        {"role": "function", "name": "weather", "content": "x"},
    ]
    _, _, (prompt,) = ask("ok", {"messages": history})
    assert '"arguments": "{\\"city\\": \\"Par"}' in prompt and "<tool_response>x</tool_response>" in prompt


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "x"}}},
         "tool_choice.allowed_tools.mode"),
        ({"tools": TOOLS, "functions": [ADD["function"]]}, "functions"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{**USER, "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"messages": [USER], "reasoning_effort": "high"}, "reasoning_effort"),
    ],
    ids=str,
)  # fmt: skip
def test_refusals_name_the_field(body, param):
    status, answer, _ = ask("ok", body)
    assert status == 400 and answer["error"]["param"] == param, answer


NAMED = {"type": "function", "function": {"name": "add"}}
STRICT = {"type": "function", "function": {"name": "add", "strict": True}}


@pytest.mark.parametrize(
    ("body", "spared"),
    [
        ({"tools": TOOLS}, True),
        ({"tools": TOOLS, "tool_choice": "required"}, False),
        ({"tools": [WEATHER, STRICT]}, False),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, False),
    ],
    ids=str,
)
def test_tools_without_a_promise_are_not_refused_for_their_grammar(asked, monkeypatch, body, spared):
    async def too_many(self, grammar, engine, owner):
        asked.append(grammar)

    monkeypatch.setattr(GrammarCompiler, "compile", too_many)

    async def test():
        server = Server(TWO, template=QWEN)
        response = await server.post(CHAT, {"messages": [USER], **body})
        return response.json()["choices"][0]["message"], server.process.requests[0].sampling.grammar

    message, grammar = run(test)
    assert len(message["tool_calls"]) == 2 and not grammar and asked[0].spared == spared


ALLOWED = {"mode": "auto", "tools": [NAMED]}


@pytest.mark.parametrize(
    ("choice", "required", "names"),
    [
        (None, False, ["weather", "add"]),
        ("required", True, ["weather", "add"]),
        (NAMED, True, ["add"]),
        ({"type": "allowed_tools", "allowed_tools": ALLOWED}, False, ["add"]),
        ({"type": "allowed_tools", "allowed_tools": {**ALLOWED, "mode": "required"}}, True, ["add"]),
    ],
    ids=str,
)
def test_all_tools_are_told_and_the_grammar_has_those_that_may_be_called(asked, choice, required, names):
    _, _, (prompt,) = ask("ok", {"tools": TOOLS, "tool_choice": choice})
    assert all(json.dumps(tool) in prompt for tool in TOOLS), "the prompt is the same, and its cached beginning"
    (grammar,) = asked
    assert grammar.kind == "lark" and grammar.param == "tools"
    assert [name for name in ("weather", "add") if f'\\"{name}\\"' in grammar.source] == names
    assert ("main: SPACE? called\n" in grammar.source) == required


@pytest.mark.parametrize(
    ("body", "several"),
    [
        ({"tools": TOOLS, "tool_choice": "required"}, True),
        ({"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}, False),
        ({"tools": TOOLS, "tool_choice": NAMED}, False),
        (
            {
                "tools": TOOLS,
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {**ALLOWED, "mode": "required"}},
            },
            True,
        ),
        ({"functions": [ADD["function"]], "function_call": {"name": "add"}}, False),
    ],
    ids=str,
)
def test_one_that_is_named_is_called_once(asked, body, several):
    ask("ok", body)
    assert ("section)*" in asked[0].source) == several


def test_without_tools_and_thoughts_a_grammar_is_the_clients(asked):
    body = {"response_format": {"type": "json_object"}}
    ask("ok", body)
    assert asked.pop().kind == "json_schema"
    ask("ok", {**body, "tools": TOOLS, "parallel_tool_calls": False})
    assert "called | SPACE? %json" in asked.pop().source
    ask("ok", body, template=THINKING)
    assert asked.pop().param == "response_format"
    ask("ok", {"messages": HISTORY})
    ask("ok", {}, template=THINKING)
    assert not asked
    status, answer, _ = ask("ok", {"tools": TOOLS, "structured_outputs": {"grammar": 'start: "x"'}})
    assert status == 400 and answer["error"]["param"] == "structured_outputs.grammar"


def test_schemas_keep_their_nulls(asked):
    schema = {"properties": {"a": {"const": None, "default": None}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "description": None}}
    _, _, (prompt,) = ask("ok", {"tools": [tool]})
    assert '{"const": null, "default": null}' in prompt and '"const":null' in asked[0].source


THOUGHT = "<think>\nTwo and two.\n</think>\n\nFour."


def test_reasoning_stands_apart_and_is_counted():
    _, answer, _ = ask(THOUGHT, {}, template=THINKING)
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning"]) == ("Four.", "Two and two.")
    assert message["reasoning_content"] == message["reasoning"]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == THOUGHT.index("\n\nFour")
    chunks = streamed(THOUGHT, {"stream_options": {"include_usage": True}}, THINKING)
    assert added_up(chunks)[0] == {"content": "Four.", "tool_calls": [], "reasoning": "Two and two."}
    assert chunks[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] == THOUGHT.index("\n\nFour")


def test_a_prompt_may_end_within_reasoning():
    rest = THOUGHT.removeprefix("<think>\n")
    for body in ({"reasoning_effort": "low"}, {"enable_thinking": True}):
        message = answered(rest, body, template=THINKING)["message"]
        assert (message["content"], message["reasoning"]) == ("Four.", "Two and two.")
    prefill = [USER, {"role": "assistant", "content": "<think>Two"}]
    body = {"messages": prefill, "continue_final_message": True}
    message = answered(" and two.</think>Four.", body, template=THINKING)["message"]
    assert (message["content"], message["reasoning"]) == ("Four.", " and two.")


def test_reasoning_can_be_left_out_and_left_in_the_text():
    message = answered(THOUGHT, {"include_reasoning": False}, template=THINKING)["message"]
    assert message == {"role": "assistant", "content": "Four.", "refusal": None}
    assert answered(THOUGHT, {}, template=THINKING, reasoning_format="none")["message"]["content"] == THOUGHT
    assert answered(THOUGHT, {}, reasoning_format="think")["message"]["content"] == "Four."


def test_a_thinking_budget_reaches_the_engine(monkeypatch):
    tags = ReasoningFormat("seed", "<|im_start|>", "<|im_end|>")
    monkeypatch.setitem(REASONING_FORMATS, "seed", tags)

    async def test():
        server = Server("ok", template=scripted.CHATML, reasoning_format="seed")
        for messages in ([USER], [USER, {"role": "assistant", "content": "<|im_start|>Hm"}]):
            body = {"messages": messages, "thinking_token_budget": 5, "continue_final_message": len(messages) > 1}
            assert (await server.post(CHAT, body)).status_code == 200
        return [each.sampling for each in server.process.requests]

    found = [(each.thinking_tokens, each.think_begin, each.think_end) for each in run(test)]
    assert found == [(5, scripted.START, scripted.END), (5, None, scripted.END)]


@pytest.mark.parametrize("template", [THINKING, scripted.CHATML], ids=["no tokens", "no tags"])
def test_a_thinking_budget_needs_tags_that_are_tokens(template):
    status, answer, _ = ask("ok", {"thinking_token_budget": 5}, template=template)
    assert status == 400 and answer["error"]["param"] == "thinking_token_budget"


def test_an_answer_that_only_thinks_has_no_content():
    choice = answered(THOUGHT, {"max_tokens": 12}, template=THINKING)
    assert choice["message"]["content"] is None and choice["message"]["reasoning"] == "Two"
    assert choice["finish_reason"] == "length"


def test_earlier_reasoning_is_for_the_template():
    template = scripted.CHATML.replace(
        "{{ m.content }}", "{% if m.reasoning_content %}[{{ m.reasoning_content }}]{% endif %}{{ m.content }}"
    )
    for field in ("reasoning", "reasoning_content"):
        history = [USER, {"role": "assistant", "content": "Four.", field: "Hm."}, USER]
        assert "[Hm.]Four." in ask("ok", {"messages": history}, template=template)[2][0]


def test_several_messages_of_the_system_where_a_template_takes_one():
    template = scripted.CHATML.replace(
        "{% for m in messages %}",
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('one') }}{% endif %}",
    )
    systems = [{"role": "system", "content": "A"}, {"role": "developer", "content": [{"type": "text", "text": "B"}]}]
    _, _, (prompt,) = ask("ok", {"messages": [*systems, USER]}, template=template)
    assert prompt.startswith("system\nA\n\nB\n")
    _, _, (prompt,) = ask("ok", {"messages": [*systems, USER]}, template=scripted.CHATML)
    assert prompt.startswith("system\nA\nsystem\nB\n")
