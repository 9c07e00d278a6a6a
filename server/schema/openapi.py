"""The published JSON schema of a request body: pydantic's, plus what is checked outside pydantic.

Nulls count as absent, operators and the served model set some bounds, fields have rules between them (`Body.rules`), ignored
fields are accepted, and unserved fields take only the values that ask for nothing. References are resolved in place, so that a
schema can stand alone inside an OpenAPI operation.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from configs.settings import Settings
from server.schema.base import Body, bodies_in
from server.schema.fields import decimal_up_to
from server.schema.limits import Limit, limits_of

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBounds:
    """What the served model adds to the bounds of a body: known once an engine is ready.

    Attributes:
        vocab_size: ids.
        context: tokens of a prompt and what follows.
        names: under which the model is served.
        begins: whether its tokenizer puts a token before a text, so that an empty text is a prompt.
        dimensions: of its vectors; 0: it makes none.
        prompts: names of what it wants before texts.
        input_types: what clients may call their texts.
        fills: whether it has tokens for filling in the middle, so that a prompt may have a suffix.
    """

    vocab_size: int
    context: int
    names: tuple[str, ...]
    begins: bool
    dimensions: int = 0
    prompts: tuple[str, ...] = ()
    input_types: tuple[str, ...] = ()
    fills: bool = False


def _largest(node: Schema, most: int) -> None:
    node["maximum"] = min(node["maximum"], most)


def _renamed_biases(node: Schema, bounds: ModelBounds) -> None:
    (bias,) = node["patternProperties"].values()
    node["patternProperties"] = {decimal_up_to(bounds.vocab_size - 1): bias}


_NOTHING: Schema = {"not": {}}  # fits
# By what a declaration calls `x-bound`.
MODEL_BOUNDS: dict[str, Callable[[Schema, ModelBounds], None]] = {
    "vocabulary": lambda node, bounds: _largest(node, bounds.vocab_size - 1),
    "biased vocabulary": _renamed_biases,
    "context": lambda node, bounds: node.update(maxItems=bounds.context),
    "output": lambda node, bounds: _largest(node, bounds.context - 1),  # a prompt has a token
    "tokens": lambda node, bounds: _largest(node, bounds.context),
    "dimensions": lambda node, bounds: _largest(node, bounds.dimensions) if bounds.dimensions else None,
    "prompts": lambda node, bounds: node.update(**({"enum": list(bounds.prompts)} if bounds.prompts else _NOTHING)),
    "input types": lambda node, bounds: node.update(enum=list(bounds.input_types)),
    "names": lambda node, bounds: node.update(enum=list(bounds.names)),
    "middle": lambda node, bounds: None if bounds.fills else node.update(maxLength=0),
    "beginning": lambda node, bounds: None if bounds.begins else node.update(minLength=1),
}


def body_schema(model: type[Body], settings: Settings, bounds: ModelBounds | None = None) -> Schema:
    """The schema of what is accepted for this model under these settings, as far as a schema can say it."""
    schema = _schema(model, settings)
    for limit in limits_of(model):
        most = getattr(settings, limit.setting)
        if most is not None:
            _bound(schema["properties"][limit.field], limit, most)
    for node in list(_nodes(schema)):
        name = node.pop("x-bound", None)
        if name is not None and bounds is not None:
            MODEL_BOUNDS[name](node, bounds)
    return schema


def _nodes(schema: Any) -> Iterator[Schema]:
    """Every object within."""
    if isinstance(schema, dict):
        yield schema
    if isinstance(schema, dict | list):
        for inner in schema.values() if isinstance(schema, dict) else schema:
            yield from _nodes(inner)


def request_body(model: type[Body], settings: Settings, bounds: ModelBounds | None, examples: dict[str, Any]) -> Schema:
    """What OpenAPI says of an operation that takes this body."""
    content = {"application/json": {"schema": body_schema(model, settings, bounds), "examples": examples}}
    return {"requestBody": {"required": True, "content": content}}


@cache
def _generated(model: type[Body]) -> str:
    """Pydantic's schema as JSON text: it is slow to make, and callers modify what they parse from it."""
    return json.dumps(model.model_json_schema(mode="validation"))


def _schema(model: type[Body], settings: Settings) -> Schema:
    raw: Schema = json.loads(_generated(model))
    definitions = raw.pop("$defs", {})
    raw.pop("description", None)
    for name, held in model.NESTED.items():
        for nested in bodies_in(held):
            if nested.__name__ in definitions:
                definitions[nested.__name__] = _schema(nested, settings)
            elif name in raw["properties"]:
                _replace_parts(raw["properties"][name], _schema(nested, settings))
    schema: Schema = _inline(raw, definitions)
    required = schema.get("required", [])
    schema["properties"] = {
        name: field if name in required else _nullable(field) for name, field in schema["properties"].items()
    } | _tables(model)
    # A null counts as absent, so it may have any name.
    schema["additionalProperties"] = settings.unknown_fields == "ignore" or {"type": "null"}
    rules = model.rules(settings)
    return schema | ({"allOf": rules} if rules else {})


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
        one_prompt = limit.field in ("prompt", "input") and branch.get("items", {}).get("type") == "integer"
        if kind == "integer" and limit.of == "value":
            branch["maximum"] = most
        elif kind == "object" and limit.of == "entries":
            branch["maxProperties"] = most
        elif kind == "array" and limit.of == "entries" and not one_prompt:
            branch["maxItems"] = most
