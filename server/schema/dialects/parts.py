"""What both dialects write in two ways: a text, or an array of parts of several kinds."""

from collections.abc import Callable
from typing import Any

from server.schema.base import wrong
from server.schema.shown import shown


def text_or(what: str, spelled: Callable[[str], Any]) -> Callable[[Any], Any]:
    """A check that makes an array of a text, by `spelled`, and leaves an array as it is; `what` it holds is for the refusal."""

    def check(value: Any) -> Any:
        if isinstance(value, str):
            return [spelled(value)]
        if not isinstance(value, list):
            raise wrong(f"must be a string or an array of {what}, got {shown(value)}")
        return value

    return check
