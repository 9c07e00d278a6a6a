"""How large a grammar may be: known before anybody looks into it."""

from server.errors import InvalidRequest
from server.structured.grammar import Grammar

MAX_SOURCE_BYTES = 256 * 1024


def check_size(grammar: Grammar) -> None:
    """Refuse what would take long to check.

    Raises:
        InvalidRequest: it is too large.
    """
    check_text_size(grammar.source, grammar.param, " as a grammar")


def check_text_size(text: str, param: str, what: str = "") -> None:
    """Refuse a text that is too long to look at, which is the field itself or `what` was made of it.

    Raises:
        InvalidRequest: with the limit and its size.
    """
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_SOURCE_BYTES:
        raise InvalidRequest(f"`{param}` must have at most {MAX_SOURCE_BYTES} bytes{what}, got {size}", param=param)
