"""Parameters of lists: how many, behind which, in which order; and other text that must be a number."""

from collections.abc import Sequence

from starlette.datastructures import QueryParams

from server.errors import InvalidRequest
from server.schema.shown import shown


def number_of(name: str, text: str, least: int, most: int, param: str | None = None) -> int:
    """A text that is a whole number from `least` to `most`, both of less than ten digits.

    Raises:
        InvalidRequest: it is none. It names `param`, or `name`.
    """
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and least <= int(text) <= most):
        told = f"`{name}` must be a whole number from {least} to {most}, got {shown(text)}"
        raise InvalidRequest(told, param=param or name)
    return int(text)


def whole_number(query: QueryParams, name: str, default: int, most: int) -> int:
    """A parameter that is a whole number from 1 to `most`.

    Raises:
        InvalidRequest: it is none.
    """
    given = query.get(name)
    return default if given is None else number_of(name, given, 1, most)


def one_of(query: QueryParams, name: str, default: str | None, choices: Sequence[str]) -> str | None:
    """A parameter that is one of these.

    Raises:
        InvalidRequest: it is none.
    """
    given = query.get(name, default)
    if given is not None and given != default and given not in choices:
        raise InvalidRequest(f"`{name}` must be one of {', '.join(choices)}, got {shown(given)}", param=name)
    return given


def parameter(name: str, text: str, **schema: object) -> dict[str, object]:
    """A parameter of the query, in OpenAPI's form."""
    return {"name": name, "in": "query", "schema": schema, "description": text}
