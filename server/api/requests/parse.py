"""Body bytes to a typed request, or one `InvalidRequest` that names what is wrong.

In order: content type, UTF-8, JSON, what JSON allows but no request needs (duplicate names, NaN, huge numbers, deep
nesting, lone surrogates), dropping nulls, fields that are not served, types and bounds, operator limits. Nothing
after this module sees a value of the wrong type.
"""

import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from configs.settings import Settings
from server.api.requests.json_bounds import check_bounds
from server.errors import InvalidRequest, UnknownField, UnsupportedField, UnsupportedMediaType
from server.schema.base import INT64_MAX, INT64_MIN, Body, Kinds
from server.schema.limits import check_limits
from server.schema.shown import shown

MAX_DEPTH = 64  # of arrays and objects; a conversation needs five
MAX_DIGITS = 400  # of one number; int() of more is quadratic in CPython

T = TypeVar("T", bound=Body)


@dataclass(frozen=True, slots=True)
class Parsed(Generic[T]):
    """A request with known fields of the right types, and the fields that were dropped (`unknown_fields=ignore`)."""

    request: T
    ignored: list[str]

    @property
    def headers(self) -> dict[str, str]:
        """The warning that the answer carries if fields were ignored."""
        if not self.ignored:
            return {}
        names = ", ".join(json.dumps(name[:64])[1:-1] for name in self.ignored[:16])  # ASCII without control characters
        return {"Warning": f'299 headrace "unknown fields ignored: {names.replace(chr(34), "")}"'}


def parse(model: type[T], body: bytes, content_type: str | None, settings: Settings) -> Parsed[T]:
    """The request in the body.

    Raises:
        InvalidRequest: anything is wrong with it; `param` is the path of the field at fault.
        UnsupportedMediaType: it is declared to be something else.
    """
    check_content_type(content_type)
    fields = decode_object(body, model.VERBATIM)
    ignored: list[str] | None = [] if settings.unknown_fields == "ignore" else None
    fields = _served(model, fields, "", ignored)
    try:
        request = model.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error) from None
    check_limits(request, settings)
    return Parsed(request, ignored or [])


def check_content_type(value: str | None) -> None:
    """Accept JSON in UTF-8, or no declaration at all.

    Raises:
        UnsupportedMediaType: another type or charset, such as the form that `curl -d` declares unless told otherwise.
    """
    if value is None:
        return
    media, *parameters = (part.strip().lower() for part in value.split(";"))
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise UnsupportedMediaType(f"The header Content-Type must be application/json, got {shown(media)}")
    for parameter in parameters:
        name, _, charset = parameter.partition("=")
        if name.strip() == "charset" and charset.strip(' "') not in ("utf-8", "utf8", "us-ascii"):
            raise UnsupportedMediaType(f"The charset of the body must be utf-8, got {shown(charset)}")


def decode_object(body: bytes, verbatim: Collection[str] = ()) -> dict[str, Any]:
    """The JSON object in the body, without nulls and without anything a Unicode string or a 64-bit number cannot hold.

    The values of the `verbatim` names keep their nulls.

    Raises:
        InvalidRequest: it is not such an object.
    """
    check_bounds(body)
    try:
        # A mark at the beginning says nothing in UTF-8, and some write it.
        text = body.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not UTF-8: byte {error.start} is invalid") from None
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise InvalidRequest(f"The body is nested deeper than {MAX_DEPTH} levels") from None
    if isinstance(value, _NoNumber):
        raise InvalidRequest(_about("", value.predicate))
    if not isinstance(value, dict):
        raise InvalidRequest(f"The body must be a JSON object, got {shown(value)}")
    cleaned: dict[str, Any] = {
        **_clean({name: item for name, item in value.items() if name not in verbatim}, "", MAX_DEPTH),
        **_clean({name: value[name] for name in verbatim if value.get(name) is not None}, "", MAX_DEPTH, nulls=True),
    }
    return cleaned


def _clean(value: Any, path: str, depth: int, *, nulls: bool = False) -> Any:
    """The value with nulls dropped from objects, unless `nulls` stay.

    Only the nulls of objects are dropped: one in an array has a position, and is refused by whoever reads the array.
    """
    if isinstance(value, str):
        return _clean_text(value, path)
    if isinstance(value, dict):
        if depth == 0:
            raise InvalidRequest(f"The body is nested deeper than {MAX_DEPTH} levels", param=path[:200] or None)
        return {
            _clean_name(name, path): _clean(item, _join(path, name), depth - 1, nulls=nulls)
            for name, item in value.items()
            if nulls or item is not None
        }
    if isinstance(value, list):
        if depth == 0:
            raise InvalidRequest(f"The body is nested deeper than {MAX_DEPTH} levels", param=path[:200] or None)
        if set(map(type, value)) == {int} and min(value) >= INT64_MIN and max(value) <= INT64_MAX:
            return value  # token ids: no call for each
        return [_clean(item, f"{path}[{i}]", depth - 1, nulls=nulls) for i, item in enumerate(value)]
    if isinstance(value, _NoNumber):
        raise InvalidRequest(_about(path, value.predicate), param=path or None)
    if isinstance(value, int) and not INT64_MIN <= value <= INT64_MAX:
        raise InvalidRequest(_about(path, f"must fit 64 bits, got {_short_int(value)}"), param=path or None)
    return value


def _clean_name(name: str, path: str) -> str:
    """No name has a NUL. In a text it is a character like others, as far as the model's tokenizer has it."""
    if "\0" in name:
        raise InvalidRequest(_about(path, "must not hold a name with the NUL character"), param=path or None)
    return _clean_text(name, path)


def _clean_text(text: str, path: str) -> str:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            message = f"must not contain the lone surrogate U+{ord(text[error.start]):04X}"
            raise InvalidRequest(_about(path, message), param=path or None) from None
    return text


def _short_int(value: int) -> str:
    digits = str(value)
    return digits if len(digits) <= 30 else f"a number of {len(digits.lstrip('-'))} digits"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        # Which of the two was meant would be a guess, and parsers differ in it.
        raise InvalidRequest(f'The name "{_printable(twice)}" is given twice in one object', param=_printable(twice))
    return fields


@dataclass(frozen=True, slots=True)
class _NoNumber:
    """In place of a number that no field can hold, until its path is known. `predicate` completes "`field` ..."."""

    predicate: str


def _int(digits: str) -> int | _NoNumber:
    if len(digits) > MAX_DIGITS:
        return _NoNumber(f"must have at most {MAX_DIGITS} digits, got {len(digits)}")
    return int(digits)


def _float(digits: str) -> float | _NoNumber:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        return _NoNumber(f"must be a number; {digits[:30]} is too large for a 64-bit float")
    return value


def _constant(name: str) -> _NoNumber:
    return _NoNumber(f"must be JSON, in which {name} is no number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_int, parse_float=_float, parse_constant=_constant)


def _served(model: type[Body], fields: dict[str, Any], path: str, ignored: list[str] | None) -> dict[str, Any]:
    """The fields that `model` serves. The others are dropped if that changes nothing, else refused by name.

    `ignored` collects unknown fields; None refuses them.
    """
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None:  # of an object within a verbatim field
            continue
        where = _join(path, name)
        if name in model.names():
            kept[name] = _nested(model.NESTED[name], value, where, ignored) if name in model.NESTED else value
        elif name in model.UNSUPPORTED:
            _check_neutral(model.UNSUPPORTED[name], value, where)
        elif name not in model.IGNORED:
            if ignored is None:
                raise _unknown(model, name, where)
            ignored.append(where)
    return kept


def _nested(model: type[Body] | Kinds, value: Any, path: str, ignored: list[str] | None) -> Any:
    if isinstance(value, dict):
        body = _kind_of(model, value, path) if isinstance(model, Kinds) else model
        return value if body is None else _served(body, value, path, ignored)
    if isinstance(value, list):
        return [
            _nested(model, item, f"{path}[{i}]", ignored) if type(item) is dict else item
            for i, item in enumerate(value)
        ]
    return value


def _kind_of(kinds: Kinds, value: dict[str, Any], path: str) -> type[Body] | None:
    kind = value.get(kinds.field)
    if isinstance(kind, str) and kind in kinds.unserved:
        where = f"{path}.{kinds.field}"
        served = ", ".join(f'"{name}"' for name in kinds.bodies)
        raise UnsupportedField(f'`{where}` "{kind}" is not served, only {served}', param=where)
    return kinds.of(value)


def _check_neutral(neutral: tuple[Any, ...], value: Any, path: str) -> None:
    if any(type(value) is type(item) and value == item for item in neutral):
        return
    accepted = f"; only {' or '.join(json.dumps(item) for item in neutral)} is accepted" if neutral else ""
    raise UnsupportedField(f"`{path}` is not served yet, got {shown(value)}{accepted}", param=path)


def _unknown(model: type[Body], name: str, path: str) -> UnknownField:
    near = difflib.get_close_matches(name[:64], sorted(model.known()), n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    if name in model.ELSEWHERE:
        hint = f"; {model.ELSEWHERE[name]} takes it"
    return UnknownField(f"`{path}` is not a field of this request{hint}", param=path)


def _invalid(error: ValidationError) -> InvalidRequest:
    """The first of pydantic's errors, as one of ours."""
    first = error.errors(include_url=False)[0]
    path = ""
    for part in first["loc"]:
        path = f"{path}[{part}]" if isinstance(part, int) else _join(path, part)
    path += first.get("ctx", {}).get("path", "")
    return InvalidRequest(_about(path, _sentence(first)), param=path or None)


_SENTENCES: Mapping[str, str] = {
    "missing": "is required",
    "less_than_equal": "must be at most {le}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "list_type": "must be an array",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "literal_error": "must be one of {expected}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "checked": "{message}",
}


def _sentence(error: ErrorDetails) -> str:
    kind = error["type"]
    template, bounds = _SENTENCES.get(kind), error.get("ctx", {})
    text = template.format(**bounds) if template else f"is invalid: {error['msg']}"
    if 1 in (bounds.get("min_length"), bounds.get("max_length")):
        text = text.replace("1 entries", "1 entry").replace("1 characters", "1 character")
    if kind in ("missing", "checked"):
        return text
    value = error["input"]
    if kind.startswith("string_too"):
        return f"{text}, got {len(value)}"
    return f"{text}, got {shown(value)}"


def _about(path: str, predicate: str) -> str:
    return f"`{path}` {predicate}" if path else f"The body {predicate}"


def _join(path: str, name: str) -> str:
    name = _printable(name)
    return f"{path}.{name}" if path else name


def _printable(name: str) -> str:
    """A name the client chose, short and safe to send back: paths are made before the name itself is checked."""
    return name[:64].encode("ascii", "backslashreplace").decode().replace("\0", "\\0")
