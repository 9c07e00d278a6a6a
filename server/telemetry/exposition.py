"""The two formats of `/metrics`, and which of them an `Accept` header asks for (RFC 9110, 12.5.1).

Whatever the header says, one of them is the answer: a scrape that is refused is a gap in every graph.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.openmetrics import exposition as openmetrics


@dataclass(frozen=True, slots=True)
class Exposition:
    """One way to write metrics down. `versions`: those that a client may name for it."""

    media_type: str
    versions: re.Pattern[str]
    content_type: str
    encode: Callable[[CollectorRegistry], bytes]


TEXT = Exposition("text/plain", re.compile(r"0\.0\.4"), exposition.CONTENT_TYPE_PLAIN_0_0_4, exposition.generate_latest)
OPEN_METRICS = Exposition(
    "application/openmetrics-text",
    re.compile(r"1(?:\.[0-9]+)*"),
    openmetrics.CONTENT_TYPE_LATEST,
    openmetrics.generate_latest,
)


def accepted(accept: str) -> Exposition:
    """OpenMetrics if the client likes it better than plain text, or names it and likes both alike; else plain text."""
    ranges = list(_ranges(accept))
    text, open_metrics = _closest(TEXT, ranges), _closest(OPEN_METRICS, ranges)
    alike = open_metrics.q == text.q > 0 and open_metrics.media_type == OPEN_METRICS.media_type
    return OPEN_METRICS if open_metrics.q > text.q or alike else TEXT


@dataclass(frozen=True, slots=True)
class _Range:
    """One entry of the header, and how much the client likes what it covers: 0 is not at all."""

    media_type: str
    version: str | None
    q: float

    def closeness(self, of: Exposition) -> int:
        """How closely it describes a format; 0 if it is about others."""
        if self.media_type == of.media_type:
            return 3 if self.version is None else 4 if of.versions.fullmatch(self.version) else 0
        return {"*/*": 1, f"{of.media_type.partition('/')[0]}/*": 2}.get(self.media_type, 0)


def _closest(of: Exposition, ranges: list[_Range]) -> _Range:
    """The entry that decides about a format: the closest, of equally close ones the best."""
    covering = [each for each in ranges if each.closeness(of)]
    return max(covering, key=lambda each: (each.closeness(of), each.q), default=_Range("", None, 0.0))


_PIECE = r'(?:"(?:[^"\\]|\\.)*+"?|[^%s"])++'  # what stands between two separators, which may stand in quotes
_ENTRY = re.compile(_PIECE % ",", re.DOTALL)
_PART = re.compile(_PIECE % ";", re.DOTALL)
_Q = re.compile(r"0\.?|0?\.[0-9]{1,9}|1(?:\.0*)?")


def _ranges(accept: str) -> Iterator[_Range]:
    """What the header lists, without entries whose weight is no number."""
    for entry in _ENTRY.findall(accept):
        media_type, _, parameters = entry.partition(";")
        values = {"q": "1"}
        for parameter in _PART.findall(parameters):
            name, _, value = parameter.partition("=")
            values[name.strip().lower()] = value.strip().strip('"')
        if _Q.fullmatch(values["q"]):
            yield _Range(media_type.strip().lower(), values.get("version"), float(values["q"]))
