"""The grammar that a request asks for, by whichever of its fields."""

from collections.abc import Iterator
from typing import Any

from server.errors import InvalidRequest
from server.schema.sampling import Sampling
from server.schema.structured import ResponseFormat, StructuredOutputs
from server.structured.features import check_schema, without_additional
from server.structured.grammar import Grammar, json_text
from server.structured.json_schema import as_schema, json_grammar
from server.structured.size import check_text_size
from server.structured.tags import lark_of_tags

_GOES_WITH = {"json_schema": {"json_schema"}, "structural_tag": {"structures", "triggers"}}
_NO_SPACE = {"whitespace_flexible": False, "whitespace_pattern": None}


def grammar_of(body: Sampling) -> Grammar | None:
    """What the answer has to fit; None: anything.

    Raises:
        InvalidRequest: the fields contradict each other, or one is not what it should be.
    """
    asked = [*_of_response_format(body.response_format), *_of_structured(body.structured_outputs), *_of_guided(body)]
    if len(asked) > 1:
        raise InvalidRequest(
            f"`{asked[1].param}` cannot be asked for beside `{asked[0].param}`: an answer fits one of them",
            param=asked[1].param,
        )
    return asked[0] if asked else None


def _of_response_format(asked: ResponseFormat | None) -> Iterator[Grammar]:
    if asked is None:
        return
    path = "response_format"
    for field in {"json_schema", "structures", "triggers"} - _GOES_WITH.get(asked.type, set()):
        if getattr(asked, field) is not None:
            raise InvalidRequest(f"`{path}.{field}` does not go with `type` {asked.type!r}", param=f"{path}.{field}")
    if asked.type == "text":
        return
    if asked.type == "json_object":
        yield json_grammar({"type": "object"}, path)
    elif asked.type == "structural_tag":
        yield Grammar("lark", lark_of_tags(asked, path), f"{path}.structures")
    elif asked.json_schema is None:
        raise InvalidRequest(f"`{path}.json_schema` is required with `type` 'json_schema'", param=f"{path}.json_schema")
    else:
        schema = asked.json_schema.schema_
        yield json_grammar({"type": "object"} if schema is None else schema, f"{path}.json_schema.schema")


def _of_structured(asked: StructuredOutputs | None) -> Iterator[Grammar]:
    if asked is None:
        return
    path, options = "structured_outputs", _options(asked)
    found: list[Grammar] = []
    if asked.json_ is not None:
        schema = as_schema(asked.json_, f"{path}.json")
        if asked.disable_additional_properties:
            check_schema(schema, f"{path}.json")
            schema = without_additional(schema)
        found.append(json_grammar(schema, f"{path}.json", options))
    if asked.json_object:
        found.append(json_grammar({"type": "object"}, f"{path}.json_object", options))
    if asked.structural_tag is not None:
        found.append(_of_tag_text(asked.structural_tag, f"{path}.structural_tag"))
    found += _plain(path, ".", asked.regex, asked.choice, asked.grammar)
    if not found:  # "one of": a second one is refused beside the first, as everywhere
        raise InvalidRequest(
            f"`{path}` must hold one of json, json_object, regex, choice, grammar and structural_tag", param=path
        )
    yield from found


def _options(asked: StructuredOutputs) -> dict[str, Any] | None:
    if asked.json_ is None and not asked.json_object:
        for field in ("whitespace_pattern", "disable_any_whitespace"):
            if getattr(asked, field):
                path = f"structured_outputs.{field}"
                raise InvalidRequest(f"`{path}` needs `json` or `json_object`, got it without", param=path)
    if asked.disable_any_whitespace:
        return _NO_SPACE
    return None if asked.whitespace_pattern is None else {"whitespace_pattern": asked.whitespace_pattern}


def _of_guided(body: Sampling) -> Iterator[Grammar]:
    if body.guided_json is None and body.guided_whitespace_pattern is not None:
        message = "`guided_whitespace_pattern` needs `guided_json`, got it without"
        raise InvalidRequest(message, param="guided_whitespace_pattern")
    if body.guided_json is not None:
        pattern = body.guided_whitespace_pattern
        yield json_grammar(
            body.guided_json, "guided_json", None if pattern is None else {"whitespace_pattern": pattern}
        )
    yield from _plain("guided", "_", body.guided_regex, body.guided_choice, body.guided_grammar)


def _plain(
    path: str, joint: str, regex: str | None, choice: list[str] | None, grammar: str | None
) -> Iterator[Grammar]:
    if regex is not None:
        yield Grammar("regex", regex, f"{path}{joint}regex")
    if choice is not None:
        yield Grammar("choice", json_text(choice), f"{path}{joint}choice")
    if grammar is not None:
        yield Grammar("lark", grammar, f"{path}{joint}grammar")


def _of_tag_text(text: str, param: str) -> Grammar:
    """vLLM takes the whole `response_format` as text."""
    from pydantic import ValidationError

    check_text_size(text, param)
    try:
        asked = ResponseFormat.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidRequest(
            f"`{param}` must be a structural tag as JSON: {where}: {first['msg']}", param=param
        ) from None
    if asked.type != "structural_tag":
        raise InvalidRequest(f"`{param}` must be of type 'structural_tag', got {asked.type!r}", param=param)
    return Grammar("lark", lark_of_tags(asked, param), param)
