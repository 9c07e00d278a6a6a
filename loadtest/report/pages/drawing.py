"""How every picture of a report looks: palette, panel, axes. Touches no global state of matplotlib and needs no display.

A picture is one panel, half as wide as the page: on a telephone the panels stand below each other, and their letters can be read.
"""

from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from math import log10

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
GREY, RED = "#9AA3AD", "#C0392B"
WIDTH, DPI = 5.7, 100  # inches, and pixels per inch: half the width of the page's text
HEIGHT = 3.3  # inches
PNG_SCALE = 1.5  # finer than the page, for dense screens
WIDE = 5  # an axis is logarithmic from this ratio of the largest to the smallest value
NEAR = 2  # a bound is drawn if it is within this factor of the values
# Decades of an axis up to which each is divided so; beyond, only whole decades are labelled, and not all of many.
_DIVISIONS = ((2.2, (1, 2, 5)), (3.2, (1, 3)))
_MOST_LABELS = 8
_MOST_STEPS = 5  # between the labels of a linear axis: each may be as long as `0.0022 ms`
_DOTS = (
    (200, 26.0, 0.85),
    (2_000, 12.0, 0.6),
)  # up to so many dots: their size in square points, and how opaque they are
_SMALL_DOTS = (5.0, 0.45)


@dataclass(frozen=True)
class Drawing:
    """One panel of a picture.

    Attributes:
        name: of its file, without extension.
        title: what it shows, for those who cannot see it.
    """

    name: str
    title: str
    figure: Figure
    panel: Axes

    @cached_property
    def png(self) -> bytes:
        """As PNG, without the version of its writer, so that equal pictures have equal bytes."""
        into = BytesIO()
        self.figure.savefig(into, format="png", dpi=DPI * PNG_SCALE, metadata={"Software": None})
        return into.getvalue()


def new_drawing(name: str, title: str) -> Drawing:
    """An empty panel with its title."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    panel = figure.subplots()
    panel.set_title(title, loc="left", fontsize=11, pad=22)
    panel.grid(True, color="#E3E6E9", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    return Drawing(name, title, figure, panel)


def dots(
    panel: Axes, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], colour: str, label: str | None = None
) -> None:
    """A dot for each pair: the fewer they are, the larger."""
    size, alpha = next(((size, alpha) for most, size, alpha in _DOTS if x.size <= most), _SMALL_DOTS)
    panel.scatter(x, y, s=size, color=colour, alpha=alpha, linewidths=0, label=label)


def time_axis(panel: Axes, which: str) -> None:
    """Label axis `x` or `y`, whose values are seconds, in the unit that reads best; logarithmic if the range is wide."""
    axis = panel.xaxis if which == "x" else panel.yaxis
    low, high = _extent(panel, which)
    if low > 0 and high / low > WIDE:
        panel.set(**{f"{which}scale": "log"})
        decades = log10(high / low)
        subs = next((subs for most, subs in _DIVISIONS if decades <= most), (1,))
        axis.set_major_locator(LogLocator(subs=subs, numticks=_MOST_LABELS))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(_MOST_STEPS))
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
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=len(labels),
            frameon=False,
            fontsize=9,
            borderaxespad=0.1,
            columnspacing=1.2,
            handlelength=1.3,
            handletextpad=0.5,
        )


def nothing(panel: Axes) -> None:
    """Say that there is nothing to draw."""
    panel.text(0.5, 0.5, "no values", transform=panel.transAxes, ha="center", va="center", color=GREY)


def failures(panel: Axes, times: npt.NDArray[np.float64]) -> None:
    """Ticks along the bottom where requests failed."""
    if times.size:
        ground = np.full(times.size, 0.02)
        panel.plot(times, ground, "|", color=RED, markersize=7, transform=panel.get_xaxis_transform(), label="failed")
