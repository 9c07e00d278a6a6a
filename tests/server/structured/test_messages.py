"""What a grammar of messages lets through is read as calls of tools that may be called, with arguments that fit; text is free."""

import json
import random

import jsonschema
import pytest

from engine.ipc.vocabulary import TokenSpellings, matcher_of
from server.errors import UnsupportedField
from server.structured.asked import json_grammar
from server.structured.compile_process import serialized
from server.structured.messages import CallableTool, MessageGrammar
from server.structured.strict_tools import check_strict
from server.text.formats.tool_formats import REASONING_FORMATS, TOOL_FORMATS
from server.text.formats.value_types import types_of
from server.text.message_parser import MessageForm, MessageParser
from tests.server.text.transcripts import Whole

WEATHER = CallableTool(
    "weather",
    {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", 'R"\u00f8'], "format": "none"}, "days": {"$ref": "#/$defs/days"}},
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
    },
)
NOW = CallableTool(
    "now",
    {
        "properties": {"zone": {"enum": ["UTC"]}, "utc": {"type": "boolean", "description": "a ::= b"}},
        "additionalProperties": False,
    },
)
TOOLS = [WEATHER, NOW]
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
_KIMI, _KIMI_BEGIN = "<|tool_call_argument_begin|>", "<|tool_calls_section_begin|>"
PLAIN_TEXTS = ("<tool_call>", "</tool_call>", "```", "</tools>", "<function=", "</function>")
SPECIAL_TEXTS = sorted(
    text
    for form in TOOL_FORMATS.values()
    for text in (*form.begin, form.call_begin, form.call_end, *form.end, "[ARGS]", "<｜tool▁sep｜>", _KIMI)
    if text and text not in PLAIN_TEXTS
)
SPECIAL = {text: 257 + i for i, text in enumerate(dict.fromkeys(SPECIAL_TEXTS))}
_XML_OSLO = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
    "</function>\n</tool_call>"
)
_GLM_OSLO = (
    "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>3</arg_value>\n</tool_call>"
)
_KIMI_OSLO = '<|tool_call_begin|>functions.weather:%s<|tool_call_argument_begin|>{"city": "Oslo"}<|tool_call_end|>'
END = 256
SPELLINGS = TokenSpellings(
    tokens=[*(bytes([b]) for b in range(256)), b"<|end|>", *(text.encode() for text in SPECIAL)],
    special_ids=[END, *SPECIAL.values()],
)
TOKENIZER = SPELLINGS.tokenizer(len(SPELLINGS.tokens), [END])


def matcher(form, tools=TOOLS, special=SPECIAL, **asked):
    found = matcher_of(TOKENIZER, serialized("lark", MessageGrammar(form, tools, special, **asked).lark()))
    assert not found.is_error(), found.get_error()
    return found


def ids_of(text):
    ids = []
    while text:
        token = next((token for special, token in SPECIAL.items() if text.startswith(special)), None)
        ids += [token] if token is not None else list(text[0].encode())
        text = text[1 if token is None else len(SPELLINGS.tokens[token].decode()) :]
    return ids


def takes(form, text, **asked):
    """How much of the text the grammar lets through, and whether it may end there."""
    found = matcher(form, **asked)
    ids = ids_of(text)
    for i, token in enumerate(ids):
        if not found.try_consume_tokens([token]):
            return b"".join(SPELLINGS.tokens[token] for token in ids[:i]).decode("utf-8", "replace"), False
    return text, found.is_accepting()


def walked(form, dice, beginning="", most=900, **asked):
    """A message drawn at random from what the grammar lets through."""
    found = matcher(form, **asked)
    ids = ids_of(beginning)
    assert all(found.try_consume_tokens([token]) for token in ids)
    while len(ids) < most and not found.is_stopped():
        mask = int.from_bytes(found.compute_bitmask(), "little")
        allowed = [token for token in range(len(SPELLINGS.tokens)) if mask >> token & 1]
        token = (
            END if END in allowed and dice.random() < 0.5 else dice.choice([t for t in allowed if t != END] or [END])
        )
        assert found.try_consume_tokens([token])
        ids += [token] if token != END else []
        if token == END:
            break
    return b"".join(SPELLINGS.tokens[token] for token in ids).decode("utf-8", "replace")


def read(form, message) -> Whole:
    parser = MessageParser(form)
    return Whole().add(parser.push(message)).add(parser.finish())


def check(whole, tools=TOOLS):
    for name, arguments in whole.calls:
        tool = next(each for each in tools if each.name == name)
        schema = {key: value for key, value in tool.parameters.items() if key != "format"}
        jsonschema.validate(json.loads(arguments), schema)


def types(parameters):
    return {key: types_of(schema, parameters) for key, schema in parameters["properties"].items()}


def form_of(name, **more):
    return MessageForm(
        tools=TOOL_FORMATS[name], parameters={each.name: types(each.parameters) for each in TOOLS}, **more
    )


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_a_required_call_is_one(name):
    dice = random.Random(name)
    for parallel in (True, False):
        form = form_of(name)
        for _ in range(4):
            whole = read(form, walked(form, dice, required=True, parallel=parallel))
            assert whole.calls and not whole.text, whole
            assert parallel or len(whole.calls) == 1
            check(whole)


@pytest.mark.parametrize("name", TOOL_FORMATS)
@pytest.mark.parametrize("said", ["", "Let me look: "])
def test_a_call_that_begins_in_free_text_is_well_formed(name, said):
    dice = random.Random(name)
    form = form_of(name)
    marker = TOOL_FORMATS[name].begin[0]
    for _ in range(3):
        message = walked(form, dice, said + marker, parallel=False)
        whole = read(form, message)
        assert len(whole.calls) == 1 and whole.text == said, message
        check(whole)


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_text_without_a_call_is_free(name):
    for text in (
        '{"name": "Ada"}',
        "[1, 2]",
        "a <tool_cal> [TOOL] {} \n\nb",
        "now(1)",
        '```json\n{"name": "Ada"}\n```',
    ):
        assert takes(form_of(name), text) == (text, True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("llama3_json", '{"name": "now", "parameters": {}}'),
        ("llama3_json", '\n{ "name":"weather","arguments": {"city": "Oslo"}}'),
        ("hermes", '{"name": "now", "arguments": {"zone": "UTC"}}'),
        ("pythonic", '[weather(city="Oslo", days=3), now()]'),
        ("pythonic", "[now(utc=true)]"),
        ("hermes", f"{CALL}\n{CALL}"),
        ("hermes", '```json\n{\n  "name": "now",\n  "arguments": {"zone":"UTC", "utc": true}\n}\n```'),
        ("hermes", 'So: ```json\n{"name": "now", "arguments": {}}\n{"name": "now", "arguments": {}}```\nDone.'),
        ("hermes", '<tools>\n{"name": "now", "arguments": {}}\n</tools>'),
        ("hermes", '{"name": "now", "arguments": {}}\n{"name":"now", "arguments": {}}'),
        ("hermes", 'Hm.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call> So.'),
        ("qwen3_coder", f"Hm.\n{_XML_OSLO}\n<tool_call>\n<function=now>\n</function>\n</tool_call>"),
        ("seed_oss", _XML_OSLO.replace("tool_call", "seed:tool_call")),
        ("glm45", f"{_GLM_OSLO}<tool_call>now</tool_call>"),
        ("glm45", _GLM_OSLO.replace("\n", "")),
        ("kimi_k2", f"{_KIMI_BEGIN}{_KIMI_OSLO % 0}{_KIMI_OSLO % 11}<|tool_calls_section_end|>"),
    ],
)  # fmt: skip
def test_calls_as_models_write_them(name, message):
    assert takes(form_of(name), message) == (message, True)
    check(read(form_of(name), message))


@pytest.mark.parametrize(
    ("name", "message", "taken"),
    [
        ("llama3_json", '{"name": "now", "parameters": 3}', '{"name": "now", "parameters": '),
        ("hermes", 'x <tool_call>\n{"name": "other"', 'x <tool_call>\n{"name": "'),
        ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"town"', '<tool_call>\n{"name": "weather", "arguments": {"'),
        ("pythonic", "[now(a=1)]", "[now("),
        ("hermes", 'x ```json {"name": "now", "arguments": {"b"', 'x ```json {"name": "now", "arguments": {"'),
        ("mistral", "[TOOL_CALLS]nothing", "[TOOL_CALLS]"),
        ("hermes", '<tool_call>\n{"name": "now", "arguments": {\n', '<tool_call>\n{"name": "now", "arguments": {'),
        ("qwen3_coder", "<tool_call>\n<function=weather>\n<parameter=days>", "<tool_call>\n<function=weather>\n<parameter="),
        ("qwen3_coder", _XML_OSLO.replace("Oslo", "Rome"), "<tool_call>\n<function=weather>\n<parameter=city>\nR"),
        ("glm45", _GLM_OSLO.replace("3", "x"), _GLM_OSLO.partition("3")[0]),
        ("kimi_k2", f"{_KIMI_BEGIN}{_KIMI_OSLO % 'a'}", f"{_KIMI_BEGIN}{_KIMI_OSLO.partition('%')[0]}"),
    ],
)  # fmt: skip
def test_a_call_that_does_not_fit_is_stopped_where_it_errs(name, message, taken):
    assert takes(form_of(name), message)[0] == taken


THINK = REASONING_FORMATS["think"]


def test_what_is_thought_is_free_and_calls_come_after_it():
    form = form_of("hermes", reasoning=THINK)
    for message in (
        f"<think>a <tool_call> b</think>\n\n{CALL}",
        CALL,
        "<thin",
        f"Hi {CALL} ho {CALL}",
        "\n<think></think>ok",
    ):
        assert takes(form, message) == (message, True), message
    assert takes(form, "<think></think> <tool_call>x")[0] == "<think></think> <tool_call>"
    for message in (f"<think>x</think>\n\n{CALL}", CALL):
        assert takes(form, message, required=True) == (message, True)
    assert takes(form, "<think>x</think>No", required=True)[0] == "<think>x</think>"
    thinks = form_of("hermes", reasoning=THINK, thinks=True)
    assert takes(thinks, f"<tool_call></think>{CALL}", required=True)[1]
    assert not takes(thinks, "never done")[1]


def test_a_format_of_the_answer_stands_beside_calls_and_after_thoughts():
    content = json_grammar({"enum": [1, 2]}, "response_format")
    form = form_of("hermes", reasoning=THINK)
    for message in ("1", CALL, f"<think>x</think>\n{CALL}", "<think>x</think>\n2"):
        assert takes(form, message, content=content) == (message, True)
    assert takes(form, "One", content=content)[0] == ""
    only = MessageForm(reasoning=THINK)
    assert takes(only, "<think>x</think>\n2", tools=[], content=content)[1]
    assert takes(only, "<think>x</think>\n3", tools=[], content=content)[0] == "<think>x</think>\n"


def test_what_no_grammar_can_say_is_left_out_unless_a_tool_is_strict():
    odd = {"properties": {"a": {"type": "string", "format": "unheard-of"}}}
    assert takes(
        form_of("hermes"),
        '<tool_call>\n{"name": "f", "arguments": {"a": "b"}}\n</tool_call>',
        tools=[CallableTool("f", odd)],
    )[1]
    lark = MessageGrammar(form_of("hermes"), [CallableTool("f", odd, strict=True)], SPECIAL).lark()
    assert matcher_of(TOKENIZER, serialized("lark", lark)).is_error()


NOTE = CallableTool(
    "note",
    {
        "properties": {
            "text": {"type": "string"},
            "to": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "kind": {"$ref": "#/$defs/Kind"},
            "tags": {"type": "array", "items": {"enum": ["a"]}},
        },
        "required": ["text"],
        "$defs": {"Kind": {"enum": ["x", 1, None]}},
    },
)


@pytest.mark.parametrize("name", ["qwen3_coder", "glm45"])
def test_texts_without_quotes_are_free_up_to_their_tag_and_other_values_fit(name):
    form = MessageForm(tools=TOOL_FORMATS[name], parameters={"note": types(NOTE.parameters)})
    text = 'a <b> "c" </\n\n  \\ {"x": 1}'
    for written, given in (("x", "x"), ("1", 1), ("null", None)):
        values = {"text": text, "to": "null", "kind": written, "tags": '["a", "a"]'}
        if name == "glm45":
            arguments = [f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in values.items()]
            message = f"<tool_call>note\n{''.join(arguments)}</tool_call>"
        else:
            arguments = [f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items()]
            message = f"<tool_call>\n<function=note>\n{''.join(arguments)}</function>\n</tool_call>"
        assert takes(form, message, tools=[NOTE], required=True) == (message, True)
        ((_, read_back),) = read(form, message).calls
        assert json.loads(read_back) == {"text": text, "to": None, "kind": given, "tags": ["a", "a"]}
        assert takes(form, message.replace('["a", "a"]', "a"), tools=[NOTE])[0] == message.partition('["a"')[0]


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ({"properties": {"a": {"type": "string", "pattern": "^x"}}}, "properties.a.pattern"),
        ({"properties": {"a": {"type": ["string", "integer"]}}}, "properties.a"),
        ({"properties": {"a": {"anyOf": [{"type": "string", "format": "uuid"}]}}}, "properties.a.anyOf[0].format"),
        ({"properties": {}, "anyOf": [{"required": ["a"]}]}, "anyOf"),
    ],
)  # fmt: skip
def test_what_a_format_cannot_keep_to_is_refused_of_a_strict_tool_by_name(parameters, path):
    tool = CallableTool("f", parameters, strict=True)
    check_strict(tool, TOOL_FORMATS["hermes"], "parameters")
    with pytest.raises(UnsupportedField) as refused:
        check_strict(tool, TOOL_FORMATS["qwen3_coder"], "parameters")
    assert refused.value.param == f"parameters.{path}"


@pytest.mark.parametrize("form", [TOOL_FORMATS["qwen3_coder"], TOOL_FORMATS["pythonic"], TOOL_FORMATS["hermes"]])
def test_a_strict_tool_as_clients_make_them_is_taken(form):
    kind = {"anyOf": [{"enum": ["x", "y"], "type": "string"}, {"type": "null"}], "title": "Kind"}
    fields = {"kind": kind, "note": {"type": "string"}, "days": {"type": "integer", "maximum": 9}}
    parameters = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    check_strict(CallableTool("f", parameters, strict=True), form, "parameters")


@pytest.mark.parametrize("required", [[], ["k0"]])
def test_a_grammar_of_keywords_is_as_long_as_they_are(required):
    def grammar(count):
        properties = {f"k{i}": {"type": "integer"} for i in range(count)}
        return [CallableTool("f", {"properties": properties, "required": required})]

    few, many = (len(MessageGrammar(form_of("pythonic"), grammar(n), SPECIAL).lark()) for n in (100, 800))
    assert many < 10 * few
    for call in ("[f(k0=1, k3=2)]", "[f(k0=1)]", *([] if required else ["[f()]", "[f(k3=1)]", "[f(k2=1, k3=2)]"])):
        assert takes(form_of("pythonic"), call, tools=grammar(4)) == (call, True)
    for call in ("[f(k3=2, k0", "[f(, k", "[f(k0=1,)"):
        assert takes(form_of("pythonic"), call, tools=grammar(4))[0] != call


@pytest.mark.parametrize("name", ["pythonic", "hermes", "qwen3_coder"])
def test_names_that_are_none_in_python_are_read_as_they_are_written(name):
    fields = {key: {"type": "integer"} for key in ("my-key", "x", "a b", "x=", "2", "é\x7f")}
    tool = CallableTool("f", {"properties": fields, "required": list(fields)[:2], "additionalProperties": False})
    form = MessageForm(tools=TOOL_FORMATS[name], parameters={"f": types(tool.parameters)})
    dice, used = random.Random(name), set()
    for _ in range(3):
        ((_, arguments),) = read(form, walked(form, dice, tools=[tool], required=True, parallel=False)).calls
        used |= set(json.loads(arguments))
    assert {"my-key", "x"} < used <= set(fields)
