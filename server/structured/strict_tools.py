"""What `strict` asks of a tool's parameters, beyond what is asked of every schema."""

from collections.abc import Iterator
from typing import Any

from server.errors import UnsupportedField
from server.structured.features import REMARKS, check_schema, subschemas
from server.structured.messages import CallableTool
from server.text.formats.tool_formats import PythonCall, TaggedCall, ToolFormat
from server.text.formats.value_types import TEXT_ONLY, resolved, types_of, values_of

_OF_TEXTS = ("format", "maxLength", "minLength", "pattern")
_OF_ARGUMENTS = REMARKS | {
    *("$anchor", "$defs", "$id", "$schema", "additionalProperties", "definitions", "properties", "required", "type")
}


def check_strict(tool: CallableTool, form: ToolFormat, path: str) -> None:
    """Refuse what a grammar of calls in this format would not honour. `path`: of the parameters.

    Raises:
        UnsupportedField: it is named by its path.
        InvalidRequest: the parameters are no schema.
    """
    check_schema(tool.parameters, path)
    if not isinstance(form.call, PythonCall | TaggedCall):
        return
    why = f"is not served with `strict` for a model that writes calls as {form.name}"
    for key in tool.parameters:
        if key not in _OF_ARGUMENTS and not key.startswith("x-"):
            raise UnsupportedField(f"`{path}.{key}` {why}", param=f"{path}.{key}")
    if isinstance(form.call, TaggedCall):
        for where in _beyond_tags(tool, path):
            raise UnsupportedField(f"`{where}` {why}, with texts without quotes", param=where)


def _beyond_tags(tool: CallableTool, path: str) -> Iterator[str]:
    """Paths of what cannot be kept to where texts are written without quotes."""
    for name, property_ in tool.properties.items():
        where = f"{path}.properties.{name}"
        schema = resolved(property_, tool.parameters)
        types = types_of(schema, tool.parameters)
        if "string" not in types or not isinstance(schema, dict) or values_of(schema) is not None:
            continue
        if types - TEXT_ONLY - {"null"}:
            yield where
        yield from (f"{place}.{key}" for part, place in _all(schema, where) for key in _OF_TEXTS if key in part)


def _all(schema: dict[str, Any], path: str) -> Iterator[tuple[dict[str, Any], str]]:
    yield schema, path
    for part, place in subschemas(schema, path):
        if isinstance(part, dict):
            yield from _all(part, place)
