"""Parameters of lists: how many, behind which, in which order."""

from collections.abc import Sequence

from starlette.datastructures import QueryParams

from server.errors import InvalidRequest
from server.schema.shown import shown


def whole_number(query: QueryParams, name: str, default: int, most: int) -> int:
    """A parameter that is a whole number from 1 to `most`.

    Raises:
        InvalidRequest: it is none.
    """
    given = query.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdecimal() and len(given) < 10 and 1 <= int(given) <= most):
        raise InvalidRequest(f"`{name}` must be a whole number from 1 to {most}, got {shown(given)}", param=name)
    return int(given)


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
