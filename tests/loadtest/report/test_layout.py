"""What the pictures of a report look like where they are read: labels apart, nothing cut off, letters of a size for a telephone."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

from loadtest.report.pages.drawing import DPI, WIDTH, Drawing, new_drawing, time_axis, time_text
from loadtest.report.pages.plots import View, goodput, latency_cdfs, plots
from loadtest.report.records import Objective
from tests.drawn import drawn

TELEPHONE = 390  # pixels
MARGINS = 2 * (8 + 1 + 10)  # of the page, and the border and the padding of a figure, on narrow screens
LEAST_LETTERS = 7.0  # pixels


def labels_apart(drawing: Drawing, which: str) -> int:
    """How many labels axis `which` has; none touches the next."""
    drawing.figure.draw_without_rendering()
    axis = drawing.panel.xaxis if which == "x" else drawing.panel.yaxis
    low, high = sorted(axis.get_view_interval())
    boxes = [
        label.get_window_extent()
        for label, at in zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True)
        if label.get_text() and low <= at <= high
    ]
    edges = sorted((box.x0, box.x1) if which == "x" else (box.y0, box.y1) for box in boxes)
    assert all(after[0] - before[1] >= 3 for before, after in pairwise(edges))
    return len(edges)


@settings(max_examples=drawn(6))
@given(st.floats(-6, 4), st.floats(0, 10), st.sampled_from(["x", "y"]))
@example(-5.69, 0.25, "x")
def test_labels_of_times_are_apart_whatever_the_range(low, decades, which):
    drawing = new_drawing("x", "x")
    values = [10**low, 10 ** min(low + decades, 7)]
    drawing.panel.plot(*((values, [0, 1]) if which == "x" else ([0, 1], values)))
    time_axis(drawing.panel, which)
    assert labels_apart(drawing, which) >= 2, "from one label alone no value can be read"


@given(st.floats(1e-6, 1e6))
def test_a_time_is_written_in_the_unit_that_reads_best(seconds):
    text, unit = time_text(seconds).split()
    assert float(text) * {"s": 1, "ms": 1e-3}[unit] == pytest.approx(seconds, rel=1e-3)
    assert (unit == "s") == (seconds >= 1)


def inside(drawing: Drawing) -> None:
    """Nothing that is written on a panel is cut off at the picture's edge."""
    drawing.figure.draw_without_rendering()
    whole = drawing.figure.bbox
    written = [drawing.panel.title, drawing.panel.xaxis.label, *drawing.panel.texts]
    legend = drawing.panel.get_legend()
    boxes = [each.get_window_extent() for each in written if each.get_text()]
    boxes += [legend.get_window_extent()] if legend else []
    for box in boxes:
        assert whole.x0 - 1 <= box.x0 and box.x1 <= whole.x1 + 1, f"{drawing.name}: wider than the picture"
        assert whole.y0 - 1 <= box.y0 and box.y1 <= whole.y1 + 1, f"{drawing.name}: higher than the picture"


def test_on_a_telephone_all_letters_can_be_read_and_none_is_cut_off(make):
    run = make.drawn_run(requests=80, objectives={"default": Objective(ttft=0.3, tpot=0.05)})
    scale = (TELEPHONE - MARGINS) / (WIDTH * DPI)
    drawings = {drawing.name: drawing for plot in plots(View.of(run)) for drawing in plot.drawings}
    for name in ("ttft_cdf", "ttft", "requests", "goodput"):  # with the most labels and the longest legends
        inside(drawings[name])
        written = [each for each in drawings[name].figure.findobj(Text) if each.get_text() and each.get_visible()]
        assert min(each.get_fontsize() for each in written) / 72 * DPI * scale >= LEAST_LETTERS, name


def test_long_names_of_several_runs_do_not_leave_the_picture(make):
    names = [f"engines of eight GPUs, prefix-aware routing, variant {letter}" for letter in "abcd"]
    views = [View.of(make.drawn_run(seed, requests=40, label=name)) for seed, name in enumerate(names)]
    for drawing in (goodput(views).drawings[0], latency_cdfs(views).drawings[0]):
        inside(drawing)


def test_each_run_keeps_its_colour_in_every_panel(make):
    views = [View.of(make.drawn_run(seed, requests=40, label=f"run {seed}")) for seed in range(3)]
    curve = latency_cdfs(views).drawings[0].panel
    attained, dots = (each.panel for each in goodput(views).drawings)
    colours = [line.get_color() for line in curve.lines if not line.get_label().startswith("_")]
    assert [line.get_color() for line in attained.lines[:3]] == colours[:3] and len(set(colours[:3])) == 3
    assert len(dots.collections) == 3
    assert len({tuple(np.round(each.get_facecolor()[0][:3], 3)) for each in dots.collections}) == 3
