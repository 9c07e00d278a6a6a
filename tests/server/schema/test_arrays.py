"""Errors for a million wrong entries would hold everybody up for seconds: arrays of bodies are read up to the first."""

from collections.abc import Iterator
from typing import Any

from server.api.endpoints import ENDPOINTS
from server.schema.base import Body


def arrays(schema: Any) -> Iterator[dict[str, Any]]:
    """The arrays that pydantic itself reads by this core schema. What is read by a function is its own affair."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            yield schema
        published = ("json_schema_input_schema", "metadata", "serialization")
        schema = [part for name, part in schema.items() if name not in published]
    elif not isinstance(schema, list):
        return
    for inner in schema:
        yield from arrays(inner)


def test_every_array_of_every_body_is_read_up_to_its_first_wrong_entry():
    assert ENDPOINTS  # with them all bodies are there
    bodies, found = [Body], []
    for body in bodies:  # grows
        bodies += [each for each in body.__subclasses__() if each.__module__.startswith("server.")]
        found += [(body, array) for array in arrays(body.__pydantic_core_schema__)]
    assert len(bodies) > 50 and len(found) > 20
    assert {body for body, array in found if not array.get("fail_fast")} == set()
