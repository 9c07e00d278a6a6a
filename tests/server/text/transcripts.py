"""Messages as models of each family write them, and what they consist of: reasoning, text, calls."""

import json
from dataclasses import dataclass, field

from server.text.formats.tool_formats import REASONING_FORMATS, TOOL_FORMATS
from server.text.formats.value_types import ANY_TYPE, TEXT_ONLY
from server.text.message_parser import CallArguments, CallBegin, MessageForm, MessageParser, Reasoning, Text

_NUMBER = frozenset({"number", "array"})
PARAMETERS = {
    "weather": {"city": TEXT_ONLY, "unit": TEXT_ONLY | {"null"}},
    "add": {"a": _NUMBER, "b": ANY_TYPE},
    "write_file": {"path": TEXT_ONLY, "content": TEXT_ONLY},
    "now": {},
}
Call = tuple[str, str]


@dataclass
class Whole:
    """What the events of a message add up to."""

    reasoning: str = ""
    text: str = ""
    calls: list[Call] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def add(self, events):
        for event in events:
            match event:
                case Text(text):
                    assert text
                    self.text += text
                case Reasoning(text):
                    assert text
                    assert not self.text and not self.calls
                    self.reasoning += text
                case CallBegin(index, call_id, name):
                    assert index == len(self.calls)
                    self.calls.append((name, ""))
                    self.ids.append(call_id)
                case CallArguments(index, text):
                    assert text
                    assert index == len(self.calls) - 1
                    name, before = self.calls[index]
                    self.calls[index] = (name, before + text)
        return self


@dataclass(frozen=True)
class Transcript:
    """A message, and what it must be read as."""

    tools: str
    message: str
    text: str = ""
    calls: tuple[Call, ...] = ()
    reasoning: str = ""
    reasons: str = ""
    thinks: bool = False

    @property
    def form(self) -> MessageForm:
        return MessageForm(
            tools=TOOL_FORMATS[self.tools] if self.tools else None,
            parameters=PARAMETERS,
            reasoning=REASONING_FORMATS[self.reasons] if self.reasons else None,
            thinks=self.thinks,
        )

    @property
    def expected(self) -> Whole:
        return Whole(self.reasoning, self.text, list(self.calls), [])

    def parser(self) -> MessageParser:
        return MessageParser(self.form)


PARIS = ("weather", '{"city": "Paris"}')
OSLO = ("weather", '{"city": "Oslo", "unit": "C"}')
JSON_PARIS = '{"name": "weather", "arguments": {"city": "Paris"}}'
JSON_OSLO = '{"name": "weather", "arguments": {"city": "Oslo", "unit": "C"}}'
CODE = ("write_file", '{"path": "a.py", "content": "if a[\\"}\\"] < 1:\\n\\tprint(\'</tool_call>\\\\\')"}')
JSON_CODE = f'{{"name": "write_file", "arguments": {CODE[1]}}}'

HERMES = [
    ("Just text, with a < b and [1, 2] and {} in it.", "Just text, with a < b and [1, 2] and {} in it.", ()),
    (f"<tool_call>\n{JSON_PARIS}\n</tool_call>", "", (PARIS,)),
    (f"<tool_call>\n{JSON_PARIS}\n</tool_call>\n<tool_call>\n{JSON_OSLO}\n</tool_call>", "", (PARIS, OSLO)),
    (f"\n<tool_call>{JSON_PARIS}</tool_call>\n", "", (PARIS,)),
    (f"Let me look.\n<tool_call>\n{JSON_PARIS}\n</tool_call>\nDone.", "Let me look.\n\nDone.", (PARIS,)),
    (f"<tool_call>{JSON_PARIS}, {JSON_OSLO}</tool_call>", "", (PARIS, OSLO)),
    (f"<tool_call>[{JSON_PARIS}, {JSON_OSLO}]</tool_call>", "", (PARIS, OSLO)),
    (f"<tool_call>\n{JSON_CODE}\n</tool_call>", "", (CODE,)),
    ('<tool_call>{"arguments": {"city": "Paris"}, "id": [1, {}], "name": "weather"}</tool_call>', "", (PARIS,)),
    ('<tool_call>{"name": "weather", "arguments": {"city": "Paris"}\n</tool_call>', "", (PARIS,)),
    ('<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}}\n</tool_call>', "", (PARIS,)),
    ('<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>', "", (PARIS,)),
    ('<tool_call>{"name": "now"}</tool_call> It is late.', " It is late.", (("now", "{}"),)),
    ('<tool_call>{"name": "now", "arguments": null}</tool_call>', "", (("now", "{}"),)),
    (f'<tool_call>{{"type": "function", "function": {JSON_OSLO}}}</tool_call>', "", (OSLO,)),
    ('<tool_call>{"name": "weather", "arguments": {"city": "Par', "", (("weather", '{"city": "Par'),)),
    ("<tool_call>", "<tool_call>", ()),
    ("Use <tool_call> tags, as in <tool_call>{...}</tool_call>.",) * 2 + ((),),
    (f"<tool_call><tool_call>{JSON_PARIS}</tool_call>", "<tool_call>", (PARIS,)),
    (f"<tool_call>{{bad}} {JSON_PARIS} <tool_call>{JSON_OSLO}", f"<tool_call>{{bad}} {JSON_PARIS} ", (OSLO,)),
    (f"{JSON_PARIS}\n{JSON_OSLO}", "", (PARIS, OSLO)),
    ('{"name": "Paris", "arguments": 3}', '{"name": "Paris", "arguments": 3}', ()),
    (f"<tool_call>{JSON_PARIS}{{'a': 1}}</tool_call>", "{'a': 1}</tool_call>", (PARIS,)),
    (f"```json\n{JSON_PARIS}\n```", "", (PARIS,)),
    (f"So:\n```json\n[{JSON_PARIS}, {JSON_OSLO}]\n```\nThere.", "So:\n\nThere.", (PARIS, OSLO)),
    ('As in ```json\n{"a": 1}\n```!',) * 2 + ((),),
    (f"<tools>\n{JSON_PARIS}\n</tools>", "", (PARIS,)),
    ("  \n ", "  \n ", ()),
    ("", "", ()),
    ("<tool_cal", "<tool_cal", ()),
]
LLAMA = [
    ('{"name": "weather", "parameters": {"city": "Paris"}}', "", (PARIS,)),
    ('<|python_tag|>{"name": "weather", "parameters": {"city": "Paris"}}; ' + JSON_OSLO, "", (PARIS, OSLO)),
    ('The answer:\n{"name": "weather", "parameters": {}}', 'The answer:\n{"name": "weather", "parameters": {}}', ()),
    ('{"name": "Ada", "born": 1815}', '{"name": "Ada", "born": 1815}', ()),
    ("<|python_tag|>print(1)", "<|python_tag|>print(1)", ()),
]
MISTRAL = [
    (f"[TOOL_CALLS][{JSON_PARIS}, {JSON_OSLO}]", "", (PARIS, OSLO)),
    (f"[TOOL_CALLS] [{JSON_CODE}]", "", (CODE,)),
    (f"Well: [x] [TOOL_CALLS]{JSON_PARIS}", "Well: [x] ", (PARIS,)),
    ("[TOOL_CALLS][]", "[TOOL_CALLS][]", ()),
]
MISTRAL_ARGS = [
    (f"[TOOL_CALLS]weather[ARGS]{PARIS[1]}[TOOL_CALLS]weather[ARGS]{OSLO[1]}", "", (PARIS, OSLO)),
    (f"Hm.[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{PARIS[1]}", "Hm.", (PARIS,)),
    ("[TOOL_CALLS]weather", "[TOOL_CALLS]weather", ()),
]
PYTHONIC = [
    ("[weather(city='Paris'), weather(city=\"Oslo\", unit='C')]", "", (PARIS, OSLO)),
    ("<|python_start|>[add(a=-1, b=[1, (2, 3), {'x': True}])]<|python_end|>", "",
     (("add", '{"a": -1, "b": [1, [2, 3], {"x": true}]}'),)),
    ("[now()]", "", (("now", "{}"),)),
    ("[weather('Paris', unit=None)]", "", (("weather", '{"city": "Paris", "unit": null}'),)),
    ("[write_file(path='a', content='it\\'s (a) \"]\" \\d')]", "",
     (("write_file", '{"path": "a", "content": "it\'s (a) \\"]\\" \\\\d"}'),)),
    ("[weather(city=Paris, unit=true)]", "", (("weather", '{"city": "Paris", "unit": true}'),)),
    ("[other(city='Paris')]", "[other(city='Paris')]", ()),
    ("[1, 2, 3] is a list", "[1, 2, 3] is a list", ()),
    ("[weather(city='Pa", "", (("weather", "{"),)),
    ("[now(,)] ok", ",)] ok", (("now", "{"),)),
]  # fmt: skip
_D3 = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n%s\n```<｜tool▁call▁end｜>"
DEEPSEEK = [
    (f"<｜tool▁calls▁begin｜>{_D3 % PARIS[1]}\n{_D3 % OSLO[1]}<｜tool▁calls▁end｜>", "", (PARIS, OSLO)),
    ("See:<｜tool▁calls▁begin｜>" + _D3 % PARIS[1], "See:", (PARIS,)),
    ("<｜tool▁calls▁begin｜>nothing<｜tool▁calls▁end｜>", "<｜tool▁calls▁begin｜>nothing<｜tool▁calls▁end｜>", ()),
]
_D31 = "<｜tool▁call▁begin｜>weather<｜tool▁sep｜>%s<｜tool▁call▁end｜>"
DEEPSEEK_31 = [
    (f"<｜tool▁calls▁begin｜>{_D31 % PARIS[1]}{_D31 % OSLO[1]}<｜tool▁calls▁end｜>", "", (PARIS, OSLO)),
]
GRANITE = [
    (f"<|tool_call|>[{JSON_PARIS}, {JSON_OSLO}]", "", (PARIS, OSLO)),
    (f"<tool_call>[{JSON_PARIS}]</tool_call> So.", " So.", (PARIS,)),
]
_X = "<tool_call>\n<function=%s>\n%s</function>\n</tool_call>"
_P = "<parameter=%s>\n%s\n</parameter>\n"
_XML_OSLO = _X % ("weather", _P % ("city", "Oslo") + _P % ("unit", "C"))
_CONTENT = "\n  if a < b:\n\treturn '</param>'\n\\d \"ö\"\n"
QWEN3_CODER = [
    (f"I look.\n{_X % ('weather', _P % ('city', 'Paris'))}\n{_XML_OSLO}", "I look.\n", (PARIS, OSLO)),
    (_X % ("write_file", _P % ("path", "a.py") + _P % ("content", _CONTENT)), "",
     (("write_file", json.dumps({"path": "a.py", "content": _CONTENT}, ensure_ascii=False)),)),
    (_X % ("add", _P % ("a", "1") + _P % ("b", '{"x": [true, null]}')), "", (("add", '{"a": 1, "b": {"x": [true, null]}}'),)),
    (_X % ("add", _P % ("a", "[1, (2, 3)]") + _P % ("b", "True")), "", (("add", '{"a": [1, [2, 3]], "b": true}'),)),
    (_X % ("add", _P % ("a", "x") + _P % ("b", '"q"') + _P % ("c", "12")), "", (("add", '{"a": "x", "b": "\\"q\\"", "c": 12}'),)),
    (_X % ("weather", _P % ("city", "12") + _P % ("unit", "null")), "", (("weather", '{"city": "12", "unit": null}'),)),
    (_X % ("weather", _P % ("city", "") + _P % ("unit", "12")), "", (("weather", '{"city": "", "unit": "12"}'),)),
    (_X % ("now", ""), "", (("now", "{}"),)),
    ("<tool_call><function=weather><parameter=city>Paris</parameter></function></tool_call>", "", (PARIS,)),
    ("<tool_call>\n<function=weather>\n<parameter=city>\nPa", "", (("weather", '{"city": "Pa'),)),
    ("<tool_call>\n<function=add>\n<parameter=a>\n1", "", (("add", "{}"),)),
    ("<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</tool_call> So.", " So.", (PARIS,)),
    (f"<tool_call>\n{JSON_PARIS}\n</tool_call>",) * 2 + ((),),
    ("Write <tool_call>\n<function=f> for a call.",) * 2 + ((),),
]  # fmt: skip
SEED = [(_XML_OSLO.replace("tool_call", "seed:tool_call"), "", (OSLO,))]
_A = "<arg_key>%s</arg_key>\n<arg_value>%s</arg_value>\n"
GLM = [
    (f"Well.\n<tool_call>weather\n{_A % ('city', 'Paris')}</tool_call>\n<tool_call>weather\n{_A % ('city', 'Oslo')}"
     f"{_A % ('unit', 'C')}</tool_call>", "Well.\n", (PARIS, OSLO)),
    ("<tool_call>add<arg_key>a</arg_key><arg_value>-1.5</arg_value></tool_call>", "", (("add", '{"a": -1.5}'),)),
    (f"<tool_call>write_file\n{_A % ('path', ' a ')}{_A % ('content', _CONTENT)}</tool_call>", "",
     (("write_file", json.dumps({"path": " a ", "content": _CONTENT}, ensure_ascii=False)),)),
    ("<tool_call>now</tool_call>", "", (("now", "{}"),)),
    ("A <tool_call> begins",) * 2 + ((),),
    ("<tool_call>now",) * 2 + ((),),
]  # fmt: skip
_K = "<|tool_call_begin|>functions.weather:%d<|tool_call_argument_begin|>%s<|tool_call_end|>"
KIMI = [
    (
        f"See:<|tool_calls_section_begin|>{_K % (0, PARIS[1])}{_K % (1, OSLO[1])}<|tool_calls_section_end|>",
        "See:",
        (PARIS, OSLO),
    ),
    ("<|tool_calls_section_begin|>none<|tool_calls_section_end|>",) * 2 + ((),),
]
THOUGHTS = [
    Transcript("", "<think>\nHm, 1 < 2.\n\n</think>\n\nYes.", "Yes.", (), "Hm, 1 < 2.", "think"),
    Transcript("", "Hm.</thin</think>Yes.", "Yes.", (), "Hm.</thin", "think", True),
    Transcript("", "<think>Never done", "", (), "Never done", "think"),
    Transcript("", "<think>\n\n</think>\n\nNo.", "No.", (), "", "think"),
    Transcript("", "Plain <think>no</think>", "Plain <think>no</think>", (), "", "think"),
    Transcript("hermes", f"<think>a <tool_call> b</think>\n\n<tool_call>{JSON_PARIS}</tool_call>", "", (PARIS,),
               "a <tool_call> b", "think"),
    Transcript("hermes", f"\nso\n</think>\n\nI look.\n<tool_call>{JSON_PARIS}</tool_call>", "I look.\n", (PARIS,),
               "so", "think", True),
    Transcript("mistral", f"[THINK]let me[/THINK][TOOL_CALLS][{JSON_OSLO}]", "", (OSLO,), "let me", "mistral"),
    Transcript("granite", "Here is my thought process:\n\nA.\n\nHere is my response:\n\nB.", "B.", (), "A.", "granite"),
    Transcript("deepseek_v31", "</think>Hi <｜tool▁calls▁begin｜>" + _D31 % PARIS[1], "Hi ", (PARIS,), "", "think", True),
]  # fmt: skip
TRANSCRIPTS = [
    *(
        Transcript(tools, *each)
        for tools, messages in {
            "hermes": HERMES,
            "llama3_json": LLAMA,
            "mistral": MISTRAL,
            "mistral_args": MISTRAL_ARGS,
            "pythonic": PYTHONIC,
            "deepseek_v3": DEEPSEEK,
            "deepseek_v31": DEEPSEEK_31,
            "granite": GRANITE,
            "qwen3_coder": QWEN3_CODER,
            "seed_oss": SEED,
            "glm45": GLM,
            "kimi_k2": KIMI,
        }.items()
        for each in messages
    ),
    *THOUGHTS,
]
