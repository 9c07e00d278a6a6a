"""From a JSON schema of a request to a grammar."""

import json
from typing import Any

from server.errors import InvalidRequest
from server.structured.features import MAX_DEPTH, check_schema, deeper_than
from server.structured.grammar import Grammar, json_text, schema_source
from server.structured.size import check_size, check_text_size

_MAX_LEVELS = 3 * MAX_DEPTH  # of objects and arrays in a text: a schema stands two or three within the one around it


def json_grammar(schema: dict[str, Any] | bool | str, param: str, options: dict[str, Any] | None = None) -> Grammar:
    """The grammar of a schema.

    Args:
        schema: a schema, or its text.
        param: path of its field.
        options: of llguidance's JSON compiler.

    Raises:
        InvalidRequest: the text is not JSON, or no schema, or one that is too large.
    """
    schema = as_schema(schema, param)
    grammar = Grammar("json_schema", schema_source(schema, options), param)
    check_size(grammar)
    check_schema(schema, param)
    return grammar


def as_schema(schema: dict[str, Any] | bool | str, param: str) -> dict[str, Any]:
    """What was given as a schema.

    Raises:
        InvalidRequest: it is text that is not JSON, too long or nested too deep, or no schema, or one that nothing fits.
    """
    if isinstance(schema, str):
        check_text_size(schema, param)
        try:
            schema = json.loads(schema)
            json_text(schema).encode()  # no half of a character
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"`{param}` must be JSON: {error}", param=param) from None
        if deeper_than(schema, _MAX_LEVELS):
            raise InvalidRequest(f"`{param}` is nested deeper than {_MAX_LEVELS} levels", param=param)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise InvalidRequest(
            f"`{param}` must be a JSON schema that something fits, got {json_text(schema)[:40]}", param=param
        )
    return schema
