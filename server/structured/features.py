"""What of JSON Schema is honoured, and a refusal by name and path of what is not.

llguidance refuses most of what it cannot honour, but knows no path, and takes a keyword that it does not know for a remark. Here
each is one of three: honoured, a remark that changes nothing, or refused.
"""

import json
from collections.abc import Iterator
from typing import Any

from server.errors import InvalidRequest, UnsupportedField
from server.schema.shown import shown

MAX_DEPTH = 64
_NAME_SHOWN = (
    100  # characters of a property's name in a path: else long names over many schemas would take long to write
)

HONOURED = frozenset(
    {
        *(
            "$schema",
            "$id",
            "$anchor",
            "$ref",
            "$defs",
            "definitions",
            "allOf",
            "anyOf",
            "oneOf",
            "type",
            "enum",
            "const",
        ),
        *("properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties"),
        *("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
        *("minLength", "maxLength", "pattern", "format"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    }
)
REMARKS = frozenset(
    {
        *("title", "description", "default", "example", "examples", "$comment", "deprecated", "readOnly", "writeOnly"),
        *("discriminator", "externalDocs", "xml"),  # of OpenAPI
    }
)
FORMATS = frozenset({"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"})
_HINTS = {
    "nullable": '; write `"type": [..., "null"]`',
    "not": "; say what is allowed",
    "dependencies": "; write anyOf of the cases",
    "if": "; write anyOf of the cases",
}

_ONE = ("additionalItems", "additionalProperties", "items")
_LISTED = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_NAMED = ("$defs", "definitions", "patternProperties", "properties")


def subschemas(schema: dict[str, Any], path: str) -> Iterator[tuple[Any, str]]:
    """The schemas directly in a schema, each with its path."""
    for name in _ONE:
        if isinstance(schema.get(name), dict | bool):
            yield schema[name], f"{path}.{name}"
    for name in _LISTED:
        if isinstance(schema.get(name), list):
            yield from ((item, f"{path}.{name}[{i}]") for i, item in enumerate(schema[name]))
    for name in _NAMED:
        if isinstance(schema.get(name), dict):
            yield from ((item, f"{path}.{name}.{key[:_NAME_SHOWN]}") for key, item in schema[name].items())


def check_schema(schema: Any, path: str, depth: int = MAX_DEPTH) -> None:
    """Refuse what would not be honoured.

    Raises:
        UnsupportedField: a keyword, or a value of one, that is not served; named by its path.
        InvalidRequest: it is no schema.
    """
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise InvalidRequest(f"`{path}` must be a JSON schema, got {shown(schema)}", param=path)
    if not depth:
        raise UnsupportedField(f"`{path}` is nested deeper than {MAX_DEPTH} schemas", param=path)
    for name, value in schema.items():
        if not _served(name, value):
            where, hint = f"{path}.{name[:_NAME_SHOWN]}", _HINTS.get(name, "")
            raise UnsupportedField(f"`{where}` is not served in a JSON schema, got {shown(value)}{hint}", param=where)
    _check_values(schema, path)
    for inner, where in subschemas(schema, path):
        check_schema(inner, where, depth - 1)


def _served(name: str, value: Any) -> bool:
    """Whether a keyword is honoured, or changes nothing."""
    if name in HONOURED or name in REMARKS or (name.startswith("x-") and name != "x-guidance"):
        return True
    return name in ("uniqueItems", "nullable") and value is False


def _check_values(schema: dict[str, Any], path: str) -> None:
    form, required, least = schema.get("format"), schema.get("required"), schema.get("minProperties")
    if form is not None and form not in FORMATS:
        known = ", ".join(sorted(FORMATS))
        raise UnsupportedField(f"`{path}.format` must be one of {known}, got {shown(form)}", param=f"{path}.format")
    if required is not None and not (isinstance(required, list) and all(isinstance(name, str) for name in required)):
        raise InvalidRequest(
            f"`{path}.required` must be an array of strings, got {shown(required)}", param=f"{path}.required"
        )
    named = len(set(required)) if isinstance(required, list) else 0
    if isinstance(least, int) and least > max(1, named):  # the model may write a name twice
        raise UnsupportedField(
            f"`{path}.minProperties` must be at most the number of required properties ({named}) or 1, got {least}",
            param=f"{path}.minProperties",
        )


def deeper_than(value: Any, most: int) -> bool:
    """Whether objects and arrays are nested deeper than so many levels. Does not recurse."""
    level = [value]
    for _ in range(most + 1):
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return False
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return True


def without_additional(schema: Any) -> Any:
    """A checked schema with `additionalProperties` false wherever it names properties and does not say."""
    if isinstance(schema, list):
        return [without_additional(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {
        name: value if name in ("const", "enum", "default", "examples") else without_additional(value)
        for name, value in schema.items()
    }
    names = isinstance(schema.get("properties"), dict) or isinstance(schema.get("patternProperties"), dict)
    return {**closed, "additionalProperties": False} if names and "additionalProperties" not in schema else closed


def path_of_pattern(source: str, reason: str, path: str) -> str:
    """The path of the pattern that a refusal quotes; `path` itself if it quotes none."""
    pending: list[tuple[Any, str]] = [(json.loads(source), path)]
    while pending:
        schema, where = pending.pop()
        if not isinstance(schema, dict):
            continue
        pattern = schema.get("pattern")
        if isinstance(pattern, str) and pattern and pattern in reason:
            return f"{where}.pattern"
        pending += subschemas(schema, where)
    return path
