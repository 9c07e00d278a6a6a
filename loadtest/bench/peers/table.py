"""What was measured, as a table."""

from collections.abc import Mapping, Sequence
from statistics import median

from loadtest.bench.peers.servers import OURS
from loadtest.bench.peers.workloads import WORKLOADS

START = {"ready": "start to the first answer, s", "memory": "peak memory of all processes, GiB"}
Figures = Mapping[str, Mapping[str, Sequence[float]]]  # server -> workload, or key of `START` -> one a round


def table(figures: Figures) -> str:
    """Markdown: medians, lowest and highest of each server, and how many times as good ours is as the best of the others."""
    others = [name for name in figures if name != OURS]
    lines = [
        "| " + " | ".join(["", *figures, f"{OURS} over the best other"]) + " |",
        "|" + " --- |" * (len(figures) + 2),
    ]
    for name in figures[OURS]:
        cells = [_cell(figures[server][name]) for server in figures]
        best = min(_better(name, median(figures[OURS][name]), median(figures[other][name])) for other in others)
        what = START.get(name) or f"{name}: {WORKLOADS[name]}"
        lines.append("| " + " | ".join([what, *cells, f"{best:.2f} x"]) + " |")
    return "\n".join(lines)


def _better(name: str, one: float, other: float) -> float:
    return other / one if name in START else WORKLOADS[name].better(one, other)


def _cell(values: Sequence[float]) -> str:
    return f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
