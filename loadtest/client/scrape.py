"""The target's Prometheus metrics as numbers: its counters before and after a run say what it did in between."""

import math
import re

import httpx

_LABELS = r'\{(?:[^"{}]|"(?:[^"\\]|\\.)*")*\}'  # a quoted value may hold braces, hashes and spaces
_NUMBER = r"[-+.0-9A-Za-z]+"
# Name, labels, value, and then what says nothing of the value: a timestamp, and an exemplar behind a hash (OpenMetrics).
_SAMPLE = re.compile(
    rf"([A-Za-z_:][\w:]*)?[ \t]*({_LABELS})?[ \t]+({_NUMBER})(?:[ \t]+{_NUMBER})?(?:[ \t]+#[ \t].*)?", re.ASCII
)
_BUCKET = re.compile(r'[{,\s]le\s*=\s*"')


def parse_metrics(text: str) -> dict[str, float]:
    """Samples by name and labels as written, without histogram buckets and values that are not finite.

    Args:
        text: Prometheus' text format, or OpenMetrics'. Only LF ends a line: a label may hold any other separator.
    """
    found: dict[str, float] = {}
    for line in text.split("\n"):
        match = None if line.startswith("#") else _SAMPLE.fullmatch(line.strip(" \t\r"))
        if match is None or not (match[1] or match[2]):
            continue
        name, labels = match[1] or "", match[2] or ""
        if name.endswith("_bucket") and _BUCKET.search(labels):
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        if math.isfinite(value):
            found[name + labels] = value
    return found


async def scrape(client: httpx.AsyncClient, root: str) -> dict[str, float]:
    """The samples at `/metrics` under `root`; empty if there are none."""
    try:
        answer = await client.get(f"{root}/metrics")
    except httpx.HTTPError:
        return {}
    return parse_metrics(answer.text) if answer.status_code == 200 else {}
