"""Blocks that are neighbours on both sides of a copy travel together (as FastSwitch joins them, arXiv 2411.18424, section 3.1)."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks `source ..` and `target ..`, `count` of them, neighbours on both sides."""

    source: int
    target: int
    count: int


def joined(pairs: Iterable[tuple[int, int]]) -> list[Run]:
    """The fewest runs that copy these pairs (source block, target block), ordered by source."""
    runs: list[Run] = []
    for source, target in sorted(pairs, key=lambda pair: (pair[1] - pair[0], pair)):  # a run has one distance
        last = runs[-1] if runs else None
        if last and (source, target) == (last.source + last.count, last.target + last.count):
            runs[-1] = Run(last.source, last.target, last.count + 1)
        else:
            runs.append(Run(source, target, 1))
    return sorted(runs, key=lambda run: (run.source, run.target))
