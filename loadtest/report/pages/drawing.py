"""How every picture of a report looks: palette, panels, axes. Touches no global state of matplotlib and needs no display."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
GREY, RED = "#9AA3AD", "#C0392B"
WIDTH, DPI = 11.6, 100  # inches, and pixels per inch: 1160 pixels, the width of the page's text
PNG_SCALE = 1.5  # finer than the page, for dense screens
WIDE = 5  # an axis is logarithmic from this ratio of the largest to the smallest value
NEAR = 2  # a bound is drawn if it is within this factor of the values

Panels: TypeAlias = npt.NDArray[Any]


def new_figure(
    rows: int, columns: int, height: float, *, sharex: bool = False, heights: Sequence[float] | None = None
) -> tuple[Figure, Panels]:
    """A figure `height` inches high, and its panels: an array [rows, columns] of Axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes: Panels = figure.subplots(rows, columns, squeeze=False, sharex=sharex, height_ratios=heights)
    for panel in axes.flat:
        panel.grid(True, color="#E3E6E9", linewidth=0.7)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png(figure: Figure) -> bytes:
    """The figure as PNG, without the version of its writer, so that equal pictures have equal bytes."""
    into = BytesIO()
    figure.savefig(into, format="png", dpi=DPI * PNG_SCALE, metadata={"Software": None})
    return into.getvalue()


def time_axis(panel: Axes, which: str) -> None:
    """Label axis `x` or `y`, whose values are seconds, in the unit that reads best; logarithmic if the range is wide."""
    axis = panel.xaxis if which == "x" else panel.yaxis
    low, high = _extent(panel, which)
    if low > 0 and high / low > WIDE:
        panel.set(**{f"{which}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: time_text(value)))


def time_bound(panel: Axes, which: str, seconds: float, colour: str) -> None:
    """A dashed line across axis `which`, unless it is so far from all values that they would be squeezed."""
    low, high = _extent(panel, which)
    if low / NEAR <= seconds <= high * NEAR:
        line = panel.axvline if which == "x" else panel.axhline
        line(seconds, color=colour, linestyle="--", linewidth=0.9)


def _extent(panel: Axes, which: str) -> tuple[float, float]:
    """The smallest and the largest value drawn."""
    low, high = panel.dataLim.intervalx if which == "x" else panel.dataLim.intervaly
    return float(low), float(high)


def time_text(seconds: float) -> str:
    """`50 ms`, `2 s`."""
    return f"{seconds:.4g} s" if seconds >= 1 else f"{seconds * 1000:.4g} ms"


def thousands(panel: Axes) -> None:
    """Label the y axis in the form 12,000."""
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def legend_above(panel: Axes) -> None:
    """A legend on one line above the panel, where it hides nothing; none if there is nothing to explain."""
    labels = panel.get_legend_handles_labels()[1]
    if labels:
        panel.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=len(labels), frameon=False, fontsize=9, borderaxespad=0.1
        )


def nothing(panel: Axes) -> None:
    """Say that there is nothing to draw."""
    panel.text(0.5, 0.5, "no values", transform=panel.transAxes, ha="center", va="center", color=GREY)


def failures(panel: Axes, times: npt.NDArray[np.float64]) -> None:
    """Ticks along the bottom where requests failed."""
    if times.size:
        ground = np.full(times.size, 0.02)
        panel.plot(times, ground, "|", color=RED, markersize=7, transform=panel.get_xaxis_transform(), label="failed")
