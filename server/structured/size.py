"""How large a grammar may be: known before anybody looks into it."""

from server.errors import InvalidRequest
from server.structured.grammar import Grammar

MAX_SOURCE_BYTES = 256 * 1024


def check_size(grammar: Grammar) -> None:
    """Refuse what would take long to check.

    Raises:
        InvalidRequest: it is too large.
    """
    size = len(grammar.source.encode())
    if size > MAX_SOURCE_BYTES:
        message = f"`{grammar.param}` must have at most {MAX_SOURCE_BYTES} bytes as a grammar, got {size}"
        raise InvalidRequest(message, param=grammar.param)
