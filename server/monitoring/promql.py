"""PromQL: the few forms of expression that dashboards and rules are made of, and a check that what one names exists.

The check reads expressions as text, however they were made: series, labels in braces, and labels that are grouped by.
"""

import re
from collections.abc import Iterator, Sequence

from server.monitoring.catalog import Catalog, UnknownSeriesError

RATE = "$__rate_interval"  # Grafana's: long enough for four scrapes
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\[[^\]]*\]|\$?[A-Za-z_][\w:]*|[(){},]|\d[\w.]*|[^\s\w]+?|\s+')
_NAME = re.compile(r"[A-Za-z_][\w:]*")
_GROUPING = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
_WORDS = _GROUPING | {"and", "or", "unless", "bool", "offset", "atan2", "inf", "nan"}
_INSTANCE = 'instance=~"$instance"'


# --- how expressions are made ---


def select(series: str, *matchers: str) -> str:
    """A series of the chosen servers. `matchers`: such as `tier="disk"`."""
    return f"{series}{{{', '.join((*matchers, _INSTANCE))}}}"


def gauge(series: str, *matchers: str, by: str = "") -> str:
    """The sum of a gauge. `by`: labels to keep, with commas."""
    return _summed(select(series, *matchers), by)


def per_second(series: str, *matchers: str, by: str = "") -> str:
    """How fast a counter grows, per second, in sum."""
    return _summed(f"rate({select(series, *matchers)}[{RATE}])", by)


def quantile(q: float, histogram: str, *matchers: str, by: str = "") -> str:
    """A quantile of a histogram; `histogram` is its name without `_bucket`."""
    buckets = per_second(f"{histogram}_bucket", *matchers, by=f"le, {by}" if by else "le")
    return f"histogram_quantile({q:g}, {buckets})"


def mean(histogram: str, *matchers: str, by: str = "") -> str:
    """Mean of what a histogram observed."""
    return share(per_second(f"{histogram}_sum", *matchers, by=by), per_second(f"{histogram}_count", *matchers, by=by))


def heat(histogram: str) -> str:
    """What a heat map shows: observations by bucket."""
    return f"sum by (le) (increase({select(f'{histogram}_bucket')}[{RATE}]))"


def share(part: str, whole: str) -> str:
    """One expression over another; no value where the whole is 0."""
    return f"{part} / ({whole} > 0)"


def _summed(vector: str, by: str) -> str:
    return f"sum by ({by}) ({vector})" if by else f"sum({vector})"


# --- what they name ---


def check(expression: str, catalog: Catalog) -> frozenset[str]:
    """Hold an expression against the series there are.

    Returns:
        The labels that its result may have: those of its groupings, of its series if nothing is grouped.

    Raises:
        UnknownSeriesError: it names no series, or one that does not exist, or a label that a series does not have.
    """
    kept: frozenset[str] | None = None
    every: frozenset[str] = frozenset()
    for series, matched, grouped in selections(expression):
        labels = catalog.labels_of(series)
        if missing := sorted((matched | frozenset().union(*grouped)) - labels):
            raise UnknownSeriesError(f"{series} has no label {', '.join(missing)}: {expression}")
        every |= labels
        if grouped:
            kept = (kept or frozenset()) | grouped[0]
    if not every:
        raise UnknownSeriesError(f"no series in {expression}")
    return every if kept is None else kept


def selections(expression: str) -> Iterator[tuple[str, frozenset[str], list[frozenset[str]]]]:
    """Each series of an expression, with the labels in its braces and, from the outside inwards, what it is grouped by."""
    tokens = [token for token in _TOKEN.findall(expression) if not token.isspace()]
    frames: list[frozenset[str] | None] = []  # of each open parenthesis: what an aggregation groups by
    pending: frozenset[str] | None = None
    place = 0
    while place < len(tokens):
        token = tokens[place]
        following = tokens[place + 1] if place + 1 < len(tokens) else ""
        if token in _GROUPING and following == "(":
            end = tokens.index(")", place)
            if token in ("by", "without") and tokens[place - 1] == ")":
                raise UnknownSeriesError(f"write `sum by (...) (...)`, which can be checked: {expression}")
            if token == "by":
                pending = _names(tokens[place + 2 : end])
            place = end
        elif token == "(":
            frames.append(pending)
            pending = None
        elif token == ")":
            frames.pop()
        elif (
            _NAME.fullmatch(token)
            and token.lower() not in _WORDS
            and following != "("
            and not _aggregates(tokens, place)
        ):
            end = tokens.index("}", place) if following == "{" else place
            yield token, _matched(tokens[place + 2 : end]), [frame for frame in frames if frame is not None]
            place = end
        place += 1


def _aggregates(tokens: Sequence[str], place: int) -> bool:
    """Whether it is the `sum` of `sum by (...)`."""
    return tokens[place + 1 : place + 2] in (["by"], ["without"])


def _names(tokens: Sequence[str]) -> frozenset[str]:
    return frozenset(token for token in tokens if token != ",")


def _matched(tokens: Sequence[str]) -> frozenset[str]:
    """Labels within braces: names before an operator."""
    return frozenset(token for token in tokens if _NAME.fullmatch(token))
