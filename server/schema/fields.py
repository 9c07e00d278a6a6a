"""Field types with a check of their own: unions that pydantic would report branch by branch, and large arrays.

Each is one pass over the value and reports one error, with the path inside the field.
"""

import re
from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema

from server.schema.base import INT32_MAX, INT64_MAX, INT64_MIN, wrong
from server.schema.shown import shown, some

_PAIRS, _PAIR_KEY, _PAIR_TEXT = 16, 64, 512  # of metadata, as OpenAI has them
MAX_STRING = 1024  # characters in one stop string or bad word: they are held back and matched at every token


def decimal_up_to(most: int) -> str:
    """A regular expression for the numbers of 0 to `most`, each in its one decimal spelling."""
    digits = str(most)
    shorter = [f"[1-9][0-9]{{0,{len(digits) - 2}}}"] if len(digits) > 1 else []
    smaller = [
        f"{digits[:i]}[{least}-{int(digit) - 1}][0-9]{{{len(digits) - 1 - i}}}"  # equal up to a digit that is smaller
        for i, digit in enumerate(digits)
        if int(digit) > (least := int(i == 0))
    ]
    return f"^({'|'.join(['0', *shorter, *smaller, *([digits] if most else [])])})$"


_TOKEN_ID = re.compile(decimal_up_to(INT32_MAX))

Prompts = list[str | list[int]]


def check_prompt(value: Any) -> Prompts:
    """A string, token ids, or a list of either, as a list of prompts of one kind."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise wrong(f"must be a string or an array, got {shown(value)}")
    if not value:
        raise wrong("must hold at least one prompt or token id, got an empty array")
    kinds = set(map(type, value))
    if kinds == {str}:
        return value
    if kinds == {int}:
        return [check_ids(value)]
    if kinds == {list}:
        return [check_ids(ids, f"[{i}]") for i, ids in enumerate(value)]
    raise wrong(
        "must be a string, an array of strings, an array of token ids or an array of such arrays; it mixes types"
    )


def check_ids(ids: Any, path: str = "") -> list[int]:
    """A non-empty array of token ids. Whether they are in the vocabulary is checked where the vocabulary is known."""
    if not isinstance(ids, list):
        raise wrong(f"must be an array of token ids, got {shown(ids)}", path)
    if not ids:
        raise wrong("must hold at least one token id, got an empty array", path)
    if set(map(type, ids)) != {int}:
        i = next(i for i, token in enumerate(ids) if type(token) is not int)
        raise wrong(f"must be a token id, got {shown(ids[i])}", f"{path}[{i}]")
    if min(ids) < 0 or max(ids) > INT32_MAX:
        i = next(i for i, token in enumerate(ids) if not 0 <= token <= INT32_MAX)
        raise wrong(f"must be a token id of 0 to {INT32_MAX}, got {shown(ids[i])}", f"{path}[{i}]")
    return ids


def check_stop(value: Any) -> list[str]:
    """A string or an array of strings, none empty."""
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list):
        raise wrong(f"must be a string or an array of strings, got {shown(value)}")
    for i, item in enumerate(strings):
        path = "" if strings is not value else f"[{i}]"
        if not isinstance(item, str):
            raise wrong(f"must be a string, got {shown(item)}", path)
        if not 1 <= len(item) <= MAX_STRING:
            raise wrong(f"must have 1 to {MAX_STRING} characters, got {len(item)}", path)
    return strings


def check_logit_bias(value: Any) -> dict[int, float]:
    """An object of token ids (strings, as JSON keys are) to biases from -100 to 100."""
    if not isinstance(value, dict):
        raise wrong(f"must be an object of token ids to numbers, got {shown(value)}")
    faults = [(key, fault) for key, bias in value.items() if (fault := _bias_fault(key, bias)) is not None]
    if len(faults) == 1:
        ((key, fault),) = faults
        raise wrong(fault, f".{key[:32]}")
    if faults:
        raise wrong(f"has {len(faults)} wrong entries: {some(f'{shown(key)} {fault}' for key, fault in faults)}")
    return {int(key): float(bias) for key, bias in value.items()}


def _bias_fault(key: str, bias: Any) -> str | None:
    """What is wrong with one entry of `logit_bias`. A token has one spelling: with `05` beside `5`, one would be lost."""
    if not _TOKEN_ID.fullmatch(key):
        return f"must be named by a token id, got {shown(key)}"
    if isinstance(bias, bool) or not isinstance(bias, int | float):
        return f"must be a number, got {shown(bias)}"
    return None if -100 <= bias <= 100 else f"must be between -100 and 100, got {shown(bias)}"


def check_content(value: Any) -> str | list[str]:
    """A message's text: a string, or the texts of an array of text parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong(f"must be a string or an array of text parts, got {shown(value)}")
    return [_part_text(part, f"[{i}]") for i, part in enumerate(value)]


def _part_text(part: Any, path: str) -> str:
    if not isinstance(part, dict):
        raise wrong(f"must be an object, got {shown(part)}", path)
    if part.get("type") != "text":
        raise wrong(f'must be "text", got {shown(part.get("type"))}', f"{path}.type")
    text = part.get("text")
    if not isinstance(text, str):
        raise wrong(f"must be a string, got {shown(text)}", f"{path}.text")
    return text


def check_metadata(value: Any) -> dict[str, str]:
    """At most 16 pairs of strings."""
    if not isinstance(value, dict):
        raise wrong(f"must be an object of strings, got {shown(value)}")
    if len(value) > _PAIRS:
        raise wrong(f"must have at most {_PAIRS} entries, got {len(value)}")
    for key, text in value.items():
        if not 1 <= len(key) <= _PAIR_KEY:
            raise wrong(f"must have keys of 1 to {_PAIR_KEY} characters, got {shown(key)}, which has {len(key)}")
        if not isinstance(text, str):
            raise wrong(f"must be a string, got {shown(text)}", f".{key}")
        if len(text) > _PAIR_TEXT:
            raise wrong(f"must have at most {_PAIR_TEXT} characters, got {len(text)}", f".{key}")
    return value


def check_early(value: Any) -> bool | str:
    """True, false or "never", as transformers has it."""
    if value is True or value is False or value == "never":
        return value  # type: ignore[no-any-return]
    raise wrong(f'must be true, false or "never", got {shown(value)}')


# `x-bound` names what the served model adds to a schema (`openapi.MODEL_BOUNDS`).
_ID = {"type": "integer", "minimum": 0, "maximum": INT32_MAX, "x-bound": "vocabulary"}
_IDS = {"type": "array", "items": _ID, "minItems": 1, "x-bound": "context"}
_PROMPT = {"type": "string", "x-bound": "beginning"}
_STRINGS = {"type": "array", "items": _PROMPT, "minItems": 1}
_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STRING}
_BIAS = {"anyOf": [{"type": "number", "minimum": -100, "maximum": 100}, {"type": "null"}]}
_PART = {
    "type": "object",
    "properties": {"type": {"type": "string", "enum": ["text"]}, "text": {"type": "string"}},
    "required": ["type", "text"],
}

Prompt = Annotated[
    Prompts,
    PlainValidator(check_prompt),
    WithJsonSchema({"anyOf": [_PROMPT, _STRINGS, _IDS, {"type": "array", "items": _IDS, "minItems": 1}]}),
]
Stop = Annotated[
    list[str], PlainValidator(check_stop), WithJsonSchema({"anyOf": [_STOP, {"type": "array", "items": _STOP}]})
]
LogitBias = Annotated[
    dict[int, float],
    PlainValidator(check_logit_bias),
    WithJsonSchema(
        {
            "type": "object",
            "patternProperties": {_TOKEN_ID.pattern: _BIAS},
            "additionalProperties": {"type": "null"},
            "x-bound": "biased vocabulary",
        }
    ),
]
Content = Annotated[
    str | list[str],
    PlainValidator(check_content),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]}),
]
Metadata = Annotated[
    dict[str, str],
    PlainValidator(check_metadata),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"minLength": 1, "maxLength": _PAIR_KEY},
            "additionalProperties": {"type": "string", "maxLength": _PAIR_TEXT},
            "maxProperties": _PAIRS,
        }
    ),
]
TokenIds = Annotated[list[int], PlainValidator(check_ids), WithJsonSchema(_IDS)]
Early = Annotated[bool | str, PlainValidator(check_early), WithJsonSchema({"enum": [True, False, "never"]})]
Count = Annotated[int, Field(ge=0, le=INT32_MAX)]
OutputTokens = Annotated[int, Field(ge=0, le=INT32_MAX, json_schema_extra={"x-bound": "output"})]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX, json_schema_extra={"x-bound": "vocabulary"})]
ModelName = Annotated[str, Field(json_schema_extra={"x-bound": "names"})]
Text = Annotated[str, Field(min_length=1, max_length=MAX_STRING)]
Suffix = Annotated[str, Field(json_schema_extra={"x-bound": "middle"})]
Int64 = Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX)]
