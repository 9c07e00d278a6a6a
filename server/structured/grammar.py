"""What the answer to a request has to fit, before it is compiled.

What belongs here: the kinds of grammars, and how each is written in Lark, llguidance's own language, where one is part of another.
Never: which field of which endpoint asks for it, how it is compiled.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["json_schema", "json_object", "regex", "choice", "lark"]

# What may stand between two JSON tokens: enough to indent, and no more, since a model that may write spaces forever sometimes does.
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"
# Escapes that a string may have. None spells a character that can be written plainly: else a property could be named otherwise than
# the schema names it, and then hold anything.
_ESCAPES = '"\\bfnrt'


@dataclass(frozen=True, slots=True)
class Grammar:
    """One grammar.

    Attributes:
        kind: of `source`: `choice` is a JSON array of strings, `json_schema` the JSON text of one, `json_object` needs none, `lark`
            is Lark as llguidance reads it, or GBNF.
        source: its text.
        param: path of the request's field that asks for it, for refusals.
        spared: the answer does without it, rather than be refused, if it cannot be compiled.
    """

    kind: Kind
    source: str
    param: str
    spared: bool = False


def json_text(value: Any) -> str:
    """A schema, or another JSON value, in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def schema_source(schema: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> str:
    """A checked schema as it is compiled, alone or after `%json` in Lark. `options`: further ones of llguidance's JSON compiler."""
    usual = {"whitespace_pattern": WHITESPACE, "json_allowed_escapes": _ESCAPES}
    return json_text({**schema, "x-guidance": {**usual, **(options or {})}})


ANY_OBJECT = schema_source({"type": "object"})


def lark_term(grammar: Grammar) -> str:
    """The grammar as the right side of a rule, or a part of it, of a Lark grammar.

    Raises:
        ValueError: it is a Lark grammar of its own, which has several rules.
    """
    match grammar.kind:
        case "json_schema":
            return f"%json {grammar.source}"
        case "json_object":
            return f"%json {ANY_OBJECT}"
        case "choice":
            return "(" + " | ".join(map(lark_string, json.loads(grammar.source))) + ")"
        case "regex":
            return f"/{regex_in_lark(grammar.source)}/"
        case "lark":
            raise ValueError("a Lark grammar cannot be a part of another one")


def lark_string(text: str) -> str:
    """A text as a literal of Lark, whose strings are those of JSON but for one character that has to be escaped, too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


def whole_regex(regex: str) -> str:
    """The regular expression. llguidance leaves a backslash at its end out.

    Raises:
        ValueError: it ends within an escape.
    """
    if (len(regex) - len(regex.rstrip("\\"))) % 2:
        raise ValueError("regex parse error: it ends with a backslash that escapes nothing")
    return regex


def regex_in_lark(regex: str) -> str:
    """A regular expression as it stands between the slashes of Lark."""
    escaped, parts = False, []
    for char in regex:
        parts.append("\\/" if char == "/" and not escaped else "\\n" if char == "\n" else char)
        escaped = char == "\\" and not escaped
    return "".join(parts)
