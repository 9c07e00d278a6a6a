"""Which JSON types a parameter takes: where a format writes texts without quotes, they decide what a value is."""

import json
from collections.abc import Mapping
from typing import Any

from server.text.formats.python_literals import literal_as_json

JsonTypes = frozenset[str]
ANY_TYPE: JsonTypes = frozenset({"string", "number", "integer", "boolean", "null", "array", "object"})
TEXT_ONLY: JsonTypes = frozenset({"string"})
_MAX_DEPTH = 16  # of schemas within schemas; beyond it any type is taken


def types_of(schema: Any, root: Mapping[str, Any], depth: int = _MAX_DEPTH) -> JsonTypes:
    """The types of what fits a schema, as far as they can be seen. `root`: the schema that its references start from."""
    schema = resolved(schema, root)
    if not isinstance(schema, dict) or not depth:
        return ANY_TYPE
    found = ANY_TYPE
    declared = schema.get("type")
    if isinstance(declared, str | list):
        found &= {str(each) for each in ([declared] if isinstance(declared, str) else declared)}
    allowed = values_of(schema)
    if allowed is not None:
        found &= {_type_of(json.dumps(each)) for each in allowed}
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            found &= frozenset[str]().union(*(types_of(each, root, depth - 1) for each in schema[key]))
    return found or ANY_TYPE


def resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """The schema that a reference within its document leads to; anything else as it is."""
    for _ in range(_MAX_DEPTH):
        target = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(target, str) or not target.startswith("#/"):
            return schema
        place: Any = root
        for name in target[2:].split("/"):
            place = place.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(place, dict) else None
        schema = place
    return None


def values_of(schema: Mapping[str, Any]) -> list[Any] | None:
    """The only values that fit, where the schema lists them."""
    if "const" in schema:
        return [schema["const"]]
    listed = schema.get("enum")
    return listed if isinstance(listed, list) else None


def value_as_json(text: str, types: JsonTypes) -> str:
    """The JSON of a value that is written without quotes if it is a text, and else as JSON or as Python has it."""
    if types != TEXT_ONLY:
        literal = literal_as_json(text.strip(), json_first=True)
        kind = _type_of(literal)
        fits = kind in types or (kind == "integer" and "number" in types)
        if kind != "string" and (fits or "string" not in types):
            return literal
    return json.dumps(text, ensure_ascii=False)


def _type_of(text: str) -> str:
    """The type of a JSON value, by its text."""
    named = {'"': "string", "{": "object", "[": "array", "t": "boolean", "f": "boolean", "n": "null"}
    return named.get(text[0]) or ("integer" if text.removeprefix("-").isdigit() else "number")
