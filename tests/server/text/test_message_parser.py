"""A message is read as what its family means by it, however it is cut into pieces; nothing of a text that is no call is lost."""

import random
from itertools import pairwise
from types import SimpleNamespace

import pytest

from server.text.chat_renderer import ChatRenderer, MessageFormats
from server.text.chat_template import ChatTemplate
from server.text.formats.tool_formats import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    reasoning_format_of,
    tool_format_of,
)
from server.text.message_parser import CallArguments, CallBegin, MessageForm, MessageParser, Reasoning, Text
from tests.server.text.transcripts import JSON_PARIS, PARAMETERS, PARIS, TRANSCRIPTS, Transcript, Whole


def read(transcript: Transcript, cuts) -> Whole:
    """The whole that the message's pieces add up to."""
    parser, whole = transcript.parser(), Whole()
    places = [0, *sorted(cuts), len(transcript.message)]
    for begin, end in pairwise(places):
        whole.add(parser.push(transcript.message[begin:end]))
    whole.add(parser.finish())
    assert len(set(whole.ids)) == len(whole.calls) == parser.calls
    whole.ids = []
    return whole


def random_cuts(dice: random.Random, size: int) -> list[int]:
    return [dice.randint(0, size) for _ in range(dice.choice((1, 2, 5, size)))]


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda each: f"{each.tools}:{each.message[:40]!r}")
def test_a_message_is_read_as_it_is_meant(transcript):
    assert read(transcript, []) == transcript.expected
    assert read(transcript, range(len(transcript.message))) == transcript.expected, "a character at a time"


def test_however_it_is_cut():
    assert len(TRANSCRIPTS) >= 50
    dice = random.Random(1)
    for transcript in TRANSCRIPTS:
        for _ in range(10):
            cuts = random_cuts(dice, len(transcript.message))
            assert read(transcript, cuts) == transcript.expected, (transcript, cuts)


@pytest.mark.long
def test_however_it_is_cut_ten_thousand_times():
    dice = random.Random(2)
    for _ in range(10_000):
        transcript = dice.choice(TRANSCRIPTS)
        cuts = random_cuts(dice, len(transcript.message))
        assert read(transcript, cuts) == transcript.expected, (transcript, cuts)


def test_of_messages_put_together_at_random_every_cut_gives_the_same():
    """Pieces of messages in any order are mostly no messages: what they are read as must still not depend on the cuts."""
    dice = random.Random(3)
    for tools in TOOL_FORMATS:
        pieces = [piece for each in TRANSCRIPTS if each.tools == tools for piece in _shreds(dice, each.message)]
        for _ in range(30):
            message = "".join(dice.choices(pieces, k=6))
            transcript = Transcript(tools, message, reasons=dice.choice(["", "think"]))
            whole = read(transcript, [])
            for _ in range(3):
                cuts = random_cuts(dice, len(message))
                assert read(transcript, cuts) == whole, (message, cuts)


def _shreds(dice: random.Random, message: str) -> list[str]:
    at = dice.randint(0, len(message))
    return [message, message[:at], message[at:]]


def test_what_is_no_call_is_given_back_whole():
    """Texts of signs that formats are made of, with no name of a tool."""
    dice = random.Random(4)
    for name, form in TOOL_FORMATS.items():
        signs = [*filter(None, form.texts()), "{", "}", "[", "]", '"', "\\", "(", ")", " ", "\n", ",", '{"a": 1}', "x"]
        for _ in range(50):
            message = "x" + "".join(dice.choices(signs, k=12))
            whole = read(Transcript(name, message), random_cuts(dice, len(message)))
            if not whole.calls:
                assert whole.text == message


def test_events_come_as_soon_as_they_are_sure():
    parser = MessageParser(
        MessageForm(tools=TOOL_FORMATS["hermes"], parameters=PARAMETERS), new_id=lambda length: "call_1"
    )
    assert parser.push("Hello") == [Text("Hello")]
    assert parser.push(" <too") == [Text(" ")]
    assert parser.push("l> x <tool_call>\n") == [Text("<tool> x ")]
    assert parser.push('{"name": "wea') == []
    assert parser.push('ther"') == [CallBegin(0, "call_1", "weather")]
    assert parser.push(', "arguments": {"ci') == [CallArguments(0, '{"ci')]
    assert parser.push('ty": "Paris"}') == [CallArguments(0, 'ty": "Paris"}')]
    assert parser.push("}\n</tool_call>\n\n") == []
    assert parser.finish() == []


def test_reasoning_comes_as_it_is_thought_without_the_space_around_it():
    parser = MessageParser(MessageForm(reasoning=REASONING_FORMATS["think"]))
    assert parser.push("<think>\nOne\n") == [Reasoning("One")]
    assert parser.push("two\n") == [Reasoning("\ntwo")]
    assert parser.push("</think>\n\n") == []
    assert parser.push("\nThree") == [Text("Three")]
    assert parser.reasoning == range(0, len("<think>\nOne\ntwo\n</think>"))


@pytest.mark.parametrize(
    ("continued", "events"),
    [("<think>", [Reasoning("try"), Text("5")]), ("<think>Let me", [Reasoning(" try"), Text("5")])],
)
def test_reasoning_goes_on_behind_that_of_the_prompt(continued, events):
    template = ChatTemplate("{% for message in messages %}{{ message.content }}{% endfor %}")
    renderer = ChatRenderer(template, lambda text, special: [], MessageFormats(reasoning="think"))
    form = renderer.message_form(f"User: 2+3?{continued}", {}, continued)
    assert form is not None
    assert MessageParser(form).push(" try</think>5") == events


@pytest.mark.parametrize("name", ["hermes", "llama3_json", "mistral"])
def test_an_answer_in_json_does_not_wait_for_its_end(name):
    parser = MessageParser(MessageForm(tools=TOOL_FORMATS[name], parameters=PARAMETERS))
    assert parser.push('{"answer') == ([] if "" in TOOL_FORMATS[name].bare else [Text('{"answer')])
    assert parser.push('": [{"') in ([Text('{"answer": [{"')], [Text('": [{"')])
    assert parser.push('name": "weather"') == [Text('name": "weather"')]
    assert parser.push(', "arguments": {}}]}') == [Text(', "arguments": {}}]}')]
    assert parser.finish() == []


def test_a_model_may_give_a_call_its_id():
    events = MessageParser(MessageForm(tools=TOOL_FORMATS["mistral_args"])).push(
        "[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{}"
    )
    assert events == [CallBegin(0, "abcdefghi", "f"), CallArguments(0, "{}")]


def test_a_numbered_call_has_its_name_and_number_for_an_id():
    call = "<|tool_call_begin|>functions.f:3<|tool_call_argument_begin|>{}<|tool_call_end|>"
    events = MessageParser(MessageForm(tools=TOOL_FORMATS["kimi_k2"])).push(f"<|tool_calls_section_begin|>{call}")
    assert events == [CallBegin(0, "functions.f:3", "f"), CallArguments(0, "{}")]


def test_a_text_without_quotes_comes_as_it_is_written():
    parser = MessageParser(MessageForm(tools=TOOL_FORMATS["qwen3_coder"], parameters=PARAMETERS), new_id=lambda _: "c")
    assert parser.push("<tool_call>\n<function=weather>\n<param") == []
    assert parser.push("eter=city>\nPa") == [CallBegin(0, "c", "weather"), CallArguments(0, '{"city": "Pa')]
    assert parser.push('"ris\n') == [CallArguments(0, '\\"ris')]
    assert parser.push("</parameter>\n</function>") == [CallArguments(0, '"}')]


def test_ids_are_as_long_as_templates_want_them():
    (begin, _) = MessageParser(MessageForm(tools=TOOL_FORMATS["mistral"])).push(f"[TOOL_CALLS][{JSON_PARIS}]")
    assert len(begin.id) == 9 and begin.id.isalnum()


def test_a_bare_call_must_name_a_tool_and_a_marked_one_need_not():
    bare = JSON_PARIS.replace("weather", "unknown")
    assert read(Transcript("hermes", bare), []).text == bare
    marked = f"<tool_call>{bare}</tool_call>"
    assert read(Transcript("hermes", marked), []).calls == [("unknown", PARIS[1])]


def test_long_and_deep_messages_take_no_long():
    for message in ("[" * 50_000, '{"function": ' * 5_000, "<tool_call>" * 5_000, '<tool_call>{"a":' + "[" * 50_000):
        transcript = Transcript("hermes", message)
        assert read(transcript, range(0, len(message), 100)).text == message


@pytest.mark.parametrize(
    "source", ["9" * 5000, "(" * 500 + ")" * 500, "'\\ud800'", "1e999", "{1, 2}", "b'x'", "-" * 5000 + "1"]
)
def test_an_odd_literal_is_a_string(source):
    whole = read(Transcript("pythonic", f"[add(a={source})]"), [])
    assert whole.calls[0][0] == "add"
    assert whole.calls[0][1].encode()


@pytest.mark.parametrize(
    ("source", "tools", "reasoning"),
    [
        ("{{ '<tool_call>' }}", "hermes", None),
        ("<|python_tag|> <tool_call>", "llama3_json", None),
        ("[TOOL_CALLS]", "mistral", None),
        ("[TOOL_CALLS] [ARGS] [THINK] [/THINK]", "mistral_args", "mistral"),
        ("<|tool_call|> <tool_call>", "granite", None),
        ("<｜tool▁sep｜> ```json </think>", "deepseek_v3", "think"),
        ("<｜tool▁sep｜>", "deepseek_v31", None),
        ("<|python_start|>", "pythonic", None),
        ("<tool_call> <function=", "qwen3_coder", None),
        ("<seed:tool_call> <function= </seed:think>", "seed_oss", "seed"),
        ("<tool_call> <arg_key> </think>", "glm45", "think"),
        ("<|tool_calls_section_begin|>", "kimi_k2", None),
        ("{{ content.split('</think>')[-1] }}", None, "think"),
        ("{{ messages }}", None, None),
    ],
)
def test_formats_are_known_by_their_template(source, tools, reasoning):
    found, thought = tool_format_of(source), reasoning_format_of(source)
    assert (found and found.name, thought and thought.name) == (tools, reasoning)


def test_special_tokens_of_a_format_are_shown():
    added = {1: "[TOOL_CALLS]", 2: "</s>", 3: "[ARGS]", 4: "plain"}
    tokenizer = SimpleNamespace(special_ids=frozenset({1, 2, 3}), added_tokens=added)
    form = MessageForm(tools=TOOL_FORMATS["mistral_args"])
    assert form.shown_tokens(tokenizer) == {1, 3}
