"""The published JSON schema of a request body: pydantic's, plus what is checked outside pydantic.

Nulls count as absent, operators set some bounds, ignored fields are accepted, and unserved fields take only the values
that ask for nothing. References are resolved in place, so that a schema can stand alone inside an OpenAPI operation.
"""

import json
from functools import cache
from typing import Any

from configs.settings import Settings
from server.schema.base import Body
from server.schema.limits import LIMITS, Limit

Schema = dict[str, Any]


def body_schema(model: type[Body], settings: Settings) -> Schema:
    """The schema of what `parse` accepts for this model under these settings."""
    schema = _schema(model)
    for limit in LIMITS:
        most = getattr(settings, limit.setting)
        if limit.field in schema["properties"] and most is not None:
            _bound(schema["properties"][limit.field], limit, most)
    return schema


def request_body(model: type[Body], settings: Settings, examples: dict[str, Any]) -> Schema:
    """FastAPI's `openapi_extra` for an endpoint that takes this body."""
    content = {"application/json": {"schema": body_schema(model, settings), "examples": examples}}
    return {"requestBody": {"required": True, "content": content}}


@cache
def _generated(model: type[Body]) -> str:
    """Pydantic's schema as JSON text: it is slow to make, and callers modify what they parse from it."""
    return json.dumps(model.model_json_schema(mode="validation"))


def _schema(model: type[Body]) -> Schema:
    raw: Schema = json.loads(_generated(model))
    definitions = raw.pop("$defs", {})
    raw.pop("description", None)
    for name, nested in model.NESTED.items():
        if nested.__name__ in definitions:
            definitions[nested.__name__] = _schema(nested)
        elif name in raw["properties"]:
            _replace_parts(raw["properties"][name], _schema(nested))
    schema: Schema = _inline(raw, definitions)
    required = schema.get("required", [])
    schema["properties"] = {
        name: field if name in required else _nullable(field) for name, field in schema["properties"].items()
    } | _tables(model)
    return schema


def _tables(model: type[Body]) -> Schema:
    ignored: Schema = {name: {"description": "Accepted without effect."} for name in sorted(model.IGNORED)}
    unserved = {
        name: {"enum": [*values, None], "description": "Not served yet."} for name, values in model.UNSUPPORTED.items()
    }
    return ignored | unserved


def _replace_parts(field: Schema, part: Schema) -> None:
    """Content parts are checked by hand (`fields.check_content`), so pydantic does not know their tables."""
    for branch in field["anyOf"]:
        if branch.get("type") == "array":
            branch["items"] = part


def _nullable(field: Schema) -> Schema:
    notes: Schema = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
    if notes.get("default", 0) is None:
        del notes["default"]  # FastAPI leaves nulls out of the document
    branches = field["anyOf"] if set(field) == {"anyOf"} else [field]
    null = {"type": "null"}
    return {"anyOf": [*branches, *([] if null in branches else [null])], **notes}


def _inline(node: Any, definitions: Schema) -> Any:
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        rest = {key: value for key, value in node.items() if key != "$ref"}
        return {**_inline(definitions[node["$ref"].rsplit("/", 1)[1]], definitions), **rest}
    return {key: _inline(value, definitions) for key, value in node.items()}


def _bound(field: Schema, limit: Limit, most: int) -> None:
    """Add the operator's bound to every branch of the field to which it applies."""
    for branch in field.get("anyOf", [field]):
        kind = branch.get("type")
        one_prompt = limit.field == "prompt" and branch.get("items", {}).get("type") == "integer"
        if kind == "integer" and limit.of == "value":
            branch["maximum"] = most
        elif kind == "object" and limit.of == "entries":
            branch["maxProperties"] = most
        elif kind == "array" and limit.of == "entries" and not one_prompt:
            branch["maxItems"] = most
