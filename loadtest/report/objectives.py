"""Reads `--slo`: `ttft=500ms,tpot=50ms`, or by class `chat:ttft=1s;batch:e2e=60s`; and vLLM's `ttft:500 tpot:50`, in milliseconds.

A bound has a unit, since 50 may be meant as either: a server that keeps 50 s between tokens meets whatever is asked of it.
"""

import re
from argparse import ArgumentTypeError
from dataclasses import fields

from loadtest.report.records import Objective

_PER_SECOND = {"ms": 1000, "s": 1}
_VLLM = re.compile(r"(ttft|tpot|e2el):([0-9.]+)")  # of `vllm bench serve --goodput`
_VLLM_NAMES = {"e2el": "e2e"}


def slo(text: str) -> dict[str, Objective]:
    """`parse_objectives` as a type for argparse. Raises ArgumentTypeError."""
    try:
        return parse_objectives(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def parse_objectives(text: str) -> dict[str, Objective]:
    """Objectives by class, under `default` if none is named. Raises ValueError, which says what is accepted."""
    words = re.split(r"[\s,]+", text.strip())
    if all(_VLLM.fullmatch(word) for word in words):
        pairs = (word.partition(":") for word in words)
        text = ",".join(f"{_VLLM_NAMES.get(name, name)}={value}ms" for name, _, value in pairs)
    found: dict[str, Objective] = {}
    for part in filter(None, text.split(";")):
        klass, colon, bounds = part.rpartition(":")
        name = klass.strip() if colon else "default"
        if not name or name in found:
            raise ValueError(f"{part!r} names no class, or one twice: chat:ttft=1s;batch:e2e=60s")
        found[name] = _objective(bounds)
    return found


def _objective(text: str) -> Objective:
    known = [each.name for each in fields(Objective)]
    bounds: dict[str, float] = {}
    for pair in text.split(","):
        name, _, value = pair.strip().partition("=")
        if name not in known or name in bounds:
            raise ValueError(f"{pair!r} sets none of {', '.join(known)}, or one twice: ttft=500ms,tpot=50ms")
        bounds[name] = _seconds(name, value)
    return Objective(**bounds)


def _seconds(name: str, text: str) -> float:
    unit = "ms" if text.endswith("ms") else "s"
    try:
        seconds = float(text.removesuffix(unit)) / _PER_SECOND[unit]
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{text!r} is not a time: 500ms, 0.5s")
    if text.removesuffix(unit) == text:
        raise ValueError(f"{name}={text} has no unit: write {name}={text}ms or {name}={text}s")
    return seconds
