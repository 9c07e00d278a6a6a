"""The quantile of every figure of the load tester: interpolated linearly between the two nearest values, as numpy does by default.

Without numpy, which a client under load does not import.
"""

from collections.abc import Iterable


def quantile(values: Iterable[float], share: float) -> float:
    """The value at `share` (0 to 1) of the sorted values; 0 if there are none."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
