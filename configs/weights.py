"""How a setting says what the requests of a tenant weigh."""

from typing import Annotated

from pydantic import AfterValidator, Field

_FORM = "NAME=WEIGHT with a WEIGHT from 0.01 to 100"


def parse_weight(text: str) -> tuple[str, float]:
    """A tenant and its weight from `NAME=WEIGHT`; the name may contain equals signs too.

    Raises:
        ValueError: the text is not such a pair, or the weight is not from 0.01 to 100.
    """
    name, equals, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not equals or not 0.01 <= weight <= 100:
        raise ValueError(f"must be {_FORM}, got {text!r}")
    return name, weight


def _check_weight(text: str) -> str:
    parse_weight(text)
    return text


Weight = Annotated[str, AfterValidator(_check_weight), Field(description=_FORM)]
