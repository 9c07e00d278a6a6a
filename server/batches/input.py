"""The input file of a batch: what each of its lines asks for, or what is wrong with it.

Only what makes a line a request of this batch is checked here: an error there is the file's, and the batch fails before it runs.
What is wrong with a request's body is the answer to that line.
"""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from server.batches.order import PromptShape, run_order, shape_of
from server.batches.records import LineError
from server.schema.shown import shown

MOST_ERRORS = 100  # told of one file
MOST_ID = 512  # characters of a custom_id
_FIELDS = ("custom_id", "method", "url", "body")
_MARK = b"\xef\xbb\xbf"  # of UTF-8, with which files of some programs begin
_SLICE_SECONDS = 0.001  # the interpreter is left to others after so long, for as long


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLine:
    """A line that can be run. `begin` and `size` are in bytes, without the end of the line; `place`: in the order of running."""

    number: int
    place: int
    custom_id: str
    begin: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRules:
    """What is asked of a file.

    Attributes:
        endpoint: the one for which all of its requests are.
        models: names that they may give.
        most_lines: of them.
        most_bytes: of one.
    """

    endpoint: str
    models: Collection[str]
    most_lines: int
    most_bytes: int


class WrongLine(Exception):
    """A line is no request of this batch."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


class _Body(msgspec.Struct):
    """What a body says that concerns the batch."""

    model: Any = None
    stream: Any = None
    background: Any = None


def read_input(path: Path, rules: InputRules) -> tuple[list[InputLine], list[LineError]]:
    """All lines of a file, or what is wrong with it: the first errors in the order of its lines. For a thread of its own."""
    lines: list[tuple[str, int, int]] = []
    shapes: list[PromptShape] = []
    errors: list[LineError] = []
    seen: dict[str, int] = {}
    for number, begin, data in _lines(path):
        if not data.strip():
            continue
        if len(lines) == rules.most_lines:
            message = f"The file must have at most {rules.most_lines} requests (max_batch_lines), and has more."
            errors.append(LineError(code="too_many_requests", message=message, line=number))
            break
        try:
            custom_id, body = _checked(data, rules)
            if custom_id in seen:
                told = f"`custom_id` must be unique; {shown(custom_id)} is that of line {seen[custom_id]}, too"
                raise WrongLine("duplicate_custom_id", told, "custom_id")
        except WrongLine as error:
            errors.append(LineError(code=error.code, message=error.message, line=number, param=error.param))
            if len(errors) == MOST_ERRORS:
                break
            continue
        seen[custom_id] = number
        lines.append((custom_id, begin, len(data)))
        shapes.append(shape_of(body, number))
    if not lines and not errors:
        errors.append(LineError(code="empty_file", message="The file has no request."))
    return ([], errors) if errors else (_placed(lines, shapes), [])


def _placed(lines: list[tuple[str, int, int]], shapes: list[PromptShape]) -> list[InputLine]:
    places = {number: place for place, number in enumerate(run_order(shapes))}
    return [
        InputLine(number=shape.number, place=places[shape.number], custom_id=custom_id, begin=begin, size=size)
        for (custom_id, begin, size), shape in zip(lines, shapes, strict=True)
    ]


def request_of(line: bytes) -> bytes:
    """The body of a line that was found to be valid, as the client wrote it."""
    return bytes(msgspec.json.decode(line, type=dict[str, msgspec.Raw])["body"])


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number, where it begins, its bytes) of each line; others have their turn at the interpreter every now and then."""
    begin, since = 0, time.monotonic()
    with path.open("rb") as file:
        for number, data in enumerate(file, 1):
            mark = len(_MARK) if data.startswith(_MARK) else 0
            yield number, begin + mark, data[mark:].rstrip(b"\r\n")
            begin += len(data)
            if time.monotonic() - since > _SLICE_SECONDS:
                time.sleep(_SLICE_SECONDS)
                since = time.monotonic()


def _checked(data: bytes, rules: InputRules) -> tuple[str, bytes]:
    """A line's `custom_id` and its body."""
    if len(data) > rules.most_bytes:
        raise WrongLine(
            "line_too_large", f"A line must have at most {rules.most_bytes} bytes (max_body_bytes), got {len(data)}"
        )
    try:
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        values = {name: msgspec.json.decode(fields[name]) for name in _FIELDS[:3] if name in fields}
        body = bytes(fields["body"]) if "body" in fields else None
        about = None if body is None else msgspec.json.decode(body, type=_Body)
    except msgspec.ValidationError:
        raise WrongLine("invalid_json_line", "A line, and the `body` in it, must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WrongLine("invalid_json_line", f"The line is not JSON: {error}") from None
    for name in _FIELDS:
        if name not in fields:
            raise WrongLine("missing_required_parameter", f"`{name}` is missing", name)
    for name in fields:
        if name not in _FIELDS:
            known = ", ".join(f"`{field}`" for field in _FIELDS)
            raise WrongLine("unknown_field", f"A line has {known}, and no {shown(name)}", name[:100])
    _check_values(values, rules)
    assert body is not None and about is not None
    _check_body(about, rules)
    return values["custom_id"], body


def _check_values(values: dict[str, Any], rules: InputRules) -> None:
    custom_id, method, url = (values[name] for name in _FIELDS[:3])
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MOST_ID:
        told = f"`custom_id` must be a string of 1 to {MOST_ID} characters, got {shown(custom_id)}"
        raise WrongLine("invalid_custom_id", told, "custom_id")
    if method != "POST":
        raise WrongLine("invalid_method", f'`method` must be "POST", got {shown(method)}', "method")
    if url != rules.endpoint:
        told = f'`url` must be that of the batch, "{rules.endpoint}", got {shown(url)}'
        raise WrongLine("invalid_url", told, "url")


def _check_body(about: _Body, rules: InputRules) -> None:
    if about.model is not None and about.model not in rules.models:
        served = ", ".join(f"`{name}`" for name in rules.models)
        told = f"The model {shown(about.model)} does not exist; served is {served}"
        raise WrongLine("model_not_found", told, "body.model")
    for name, asked in (("stream", about.stream), ("background", about.background)):
        if asked:
            raise WrongLine("invalid_value", f"`{name}` must be false in a batch, got {shown(asked)}", f"body.{name}")
