"""A value from a request as an error message quotes it."""

import json
from collections.abc import Iterable
from typing import Any

LONGEST = 60  # characters of a value that a message repeats
MOST = 8  # values that a message lists


def shown(value: Any) -> str:
    """The value as short JSON; containers by their size, since their content may be as long as the body."""
    if isinstance(value, list | tuple):
        return f"an array of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def some(values: Iterable[str]) -> str:
    """The first of several values, and how many follow."""
    texts = list(values)
    rest = f" and {len(texts) - MOST} more" if len(texts) > MOST else ""
    return f"{'; '.join(texts[:MOST])}{rest}"
