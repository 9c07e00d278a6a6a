"""The target's Prometheus metrics as numbers: its counters before and after a run say what it did in between."""

import math
import re

import httpx

_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(\{.*\})?\s+(\S+)(?:\s+-?\d+)?")


def parse_metrics(text: str) -> dict[str, float]:
    """Samples by name and labels as written, without histogram buckets and values that are not finite."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = None if line.startswith("#") else _SAMPLE.fullmatch(line.strip())
        if match is None or match[1].endswith("_bucket"):
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        if math.isfinite(value):
            found[match[1] + (match[2] or "")] = value
    return found


async def scrape(client: httpx.AsyncClient, root: str) -> dict[str, float]:
    """The samples at `/metrics` under `root`; empty if there are none."""
    try:
        answer = await client.get(f"{root}/metrics")
    except httpx.HTTPError:
        return {}
    return parse_metrics(answer.text) if answer.status_code == 200 else {}
