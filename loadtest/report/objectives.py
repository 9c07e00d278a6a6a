"""Reads `--slo`: `ttft=500ms,tpot=50ms`, or by class `chat:ttft=1s;batch:e2e=60s`."""

from dataclasses import fields

from loadtest.report.records import Objective

_PER_SECOND = {"ms": 1000, "s": 1}


def parse_objectives(text: str) -> dict[str, Objective]:
    """Objectives by class, under `default` if none is named. Raises ValueError, which says what is accepted."""
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
        bounds[name] = _seconds(value)
    return Objective(**bounds)


def _seconds(text: str) -> float:
    unit = "ms" if text.endswith("ms") else "s"
    try:
        seconds = float(text.removesuffix(unit)) / _PER_SECOND[unit]
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{text!r} is not a time: 500ms, 0.5s")
    return seconds
