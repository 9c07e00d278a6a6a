"""Numbers of command lines: types for argparse, whose message then names the option, the value and what is accepted."""

from argparse import ArgumentTypeError
from math import inf


def whole(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1)


def count(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, 0)


def positive(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not 0 < value < inf:
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def not_negative(text: str) -> float:
    """A finite number of at least 0."""
    value = _number(text)
    if not 0 <= value < inf:
        raise ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def share(text: str) -> float:
    """A share from 0 to 1, as `0.1` or `10%`."""
    percent = text.removesuffix("%")
    value = _number(percent) / (100 if percent != text else 1)
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text!r} is not a share: 0.1, 10%")
    return value


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return value


def _number(text: str) -> float:
    """NaN for what is no number."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
