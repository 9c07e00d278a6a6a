"""What a reader gets: files, page and table."""

import json
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from rich.console import Console

from loadtest.report import RunReport
from loadtest.report.columns import Columns
from loadtest.report.metrics import summarize
from loadtest.report.pages import page
from loadtest.report.pages.drawing import dots, new_drawing, time_axis, time_bound
from loadtest.report.pages.html import key_figures, render
from loadtest.report.pages.plots import View, plots
from loadtest.report.records import LoadRun
from loadtest.report.rows import Section, figure, percent, sections
from loadtest.report.run_file import read_run
from loadtest.report.table import show

PNG = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "img", "br", "link"}


class Outline(HTMLParser):
    """The tags of a page, refusing one that is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [str(value) for name, value in attrs if name in ("src", "href")]
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def outline(html: str) -> Outline:
    found = Outline()
    found.feed(html)
    assert not found.open
    return found


def terminal(run: LoadRun, width: int = 100) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        show(run, summarize(run), console)
    return capture.get()


def test_a_report_is_a_page_its_pictures_and_the_run(make, tmp_path):
    run = make.drawn_run(1)
    written = RunReport(run).write(tmp_path / "new" / "folder")
    names = [
        "run.json",
        "report.html",
        *(f"{name}_cdf.png" for name in ("ttft", "tpot", "itl", "e2e")),
        *(
            f"{name}.png"
            for name in ("arrivals", "ttft", "itl", "output", "prompt", "requests", "concurrency", "lateness")
        ),
        *(f"{name}.png" for name in ("attainment", "goodput")),
    ]
    assert [path.name for path in written] == names
    assert read_run(written[0]) == run
    html = written[1].read_text(encoding="utf-8")
    assert len(html) < 1_200_000 and "width=device-width" in html and "minmax(min(100%, 420px), 1fr)" in html
    found = outline(html)
    assert len(found.sources) == 14 and all(source.startswith("data:image/png;base64,") for source in found.sources)
    assert {"Load", "Latency", "Objectives", "Latency against arrivals", "The plan"} <= set(found.headings)
    assert all(path.read_bytes().startswith(PNG) for path in written[2:])


def test_the_pictures_of_a_run_are_the_same_bytes_each_time(make):
    first, second = (plots(View.of(make.drawn_run(2, requests=60))) for _ in range(2))
    pairs = [
        (drawing.png, again.png)
        for plot, other in zip(first[:2], second[:2], strict=True)
        for drawing, again in zip(plot.drawings[:1], other.drawings[:1], strict=True)
    ]
    assert len(pairs) == 2 and all(drawing == again for drawing, again in pairs)


def test_without_objectives_there_is_no_goodput(make):
    run = make.drawn_run(1, requests=60, objectives={})
    assert "Goodput and attainment" not in [plot.title for plot in plots(View.of(run))]
    assert "Objectives" not in [section.title for section in sections(run, summarize(run))]


@pytest.mark.parametrize("kind", ["nothing", "all refused", "one", "one token each"])
def test_the_oddest_runs_have_a_report(make, kind):
    records = {
        "nothing": [],
        "all refused": [make.refused(i, i * 0.1) for i in range(5)],
        "one": [make.answered(0, 0.0, ttft=0.1, gaps=(0.1,))],
        "one token each": [make.answered(i, 0.0, ttft=0.1) for i in range(5)],
    }[kind]
    run = make.run_of(records)
    drawings = [drawing for plot in plots(View.of(run)) for drawing in plot.drawings]
    half = drawings[len(kind) % 2 :: 2]  # each takes a tenth of a second
    assert all(drawing.png.startswith(PNG) for drawing in half)
    outline(render(run, summarize(run), []))
    assert "planned" in terminal(run)


def test_whatever_a_server_says_is_text(make, tmp_path):
    bad = make.refused(0, 0.0, detail="<script>alert(1)</script> [bold]no[/bold]", klass="<b>")
    run = make.run_of(
        [bad, make.answered(1, 0, ttft=1)], label="<i>", problems=["3: <u>"], invalid=["<s>"], target="[red]t"
    )
    html = render(run, summarize(run), [])
    assert not set(outline(html).tags) & {"script", "i", "u", "s"}
    assert "&lt;script&gt;" in html and "&lt;i&gt;" in html and "&lt;s&gt;" in html and "&lt;u&gt;" in html
    assert "[red]t" in terminal(run) and "[bold]no[/bold]" in terminal(run)


def test_an_invalid_run_says_so_first(make):
    run = make.drawn_run(1, requests=50, invalid=["lateness p99 of 480 ms; the limit is 20 ms"])
    html = render(run, summarize(run), [])
    assert html.index("480 ms") < html.index("Load")
    text = terminal(run)
    assert text.index("INVALID") < text.index("Load")
    assert "INVALID" not in terminal(make.drawn_run(1, requests=50))


def test_table_and_page_show_the_same_figures(make):
    run = make.drawn_run(4)
    summary = summarize(run)
    html, text = render(run, summary, []), terminal(run, 200)
    cells = {cell for section in sections(run, summary) for row in section.rows for cell in row if cell}
    assert len(cells) > 60
    assert [cell for cell in cells if cell not in text or page.escape(cell) not in html] == []


def test_a_narrow_terminal_hides_no_figure(make):
    run = make.drawn_run(4)
    text = terminal(run, 80)
    rows = [row for section in sections(run, summarize(run)) if section.title == "Latency" for row in section.rows]
    assert [cell for row in rows for cell in row[1:] if cell not in text] == []


def test_table_and_page_have_the_figures_of_one_reading(make, tmp_path, monkeypatch, capsys):
    read = []
    of = Columns.of.__func__
    monkeypatch.setattr(Columns, "of", classmethod(lambda cls, run: read.append(run) or of(cls, run)))
    run = make.drawn_run(1, requests=50)
    report = RunReport(run)
    report.write(tmp_path)
    report.print_table()
    assert read == [run] and report.summary is report.summary
    monkeypatch.undo()
    assert report.summary == summarize(run)
    assert "time to first token" in capsys.readouterr().out


def test_bad_requests_are_shown(make):
    run = make.run_of(
        [make.answered(7, 1.0, ttft=1, violations=["sent twice"]), *[make.refused(i, 2.0) for i in range(20)]]
    )
    html = render(run, summarize(run), [])
    assert "sent twice" in html and "#7" in html and "status: 429" in html
    assert html.count("requests wait") == 1 + 9  # the kind, and the first ones


def test_the_plan_and_the_rows_left_out_are_on_the_page(make):
    run = make.run_of(
        [make.answered(0, 0.0, ttft=1)], plan={"trace": "t.csv"}, problems=[f"{n}: 0 tokens" for n in range(30)]
    )
    html = render(run, summarize(run), [])
    assert json.dumps("t.csv") in html.replace("&quot;", '"')
    assert "19: 0 tokens" in html and "20: 0 tokens" not in html and "and 10 more" in html


def test_how_the_client_did_is_shown(make):
    health = {"lateness_p99": 0.0042, "loop_lag_max": 0.25, "cpu_share": 0.413, "connections": 1200.0}
    run = make.run_of([make.answered(0, 0.0, ttft=1)], client=health)
    (section,) = [each for each in sections(run, summarize(run)) if each.title == "The client"]
    assert section.rows == [
        ("lateness p99 (ms)", "4.20"),
        ("loop lag max (ms)", "250.0"),
        ("cpu of one processor", "41.3 %"),
        ("connections", "1,200"),
    ]


def test_key_figures_of_a_run_without_answers(make):
    entries = dict(key_figures(summarize(make.run_of([make.refused(0, 0.0)]))))
    assert entries == {"of 1 answered": "0.0 %", "output tokens/s": "0"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.05123, "0.0512"), (1.234, "1.23"), (12.345, "12.35"), (123.45, "123.5"), (12345.6, "12,346")],
)
def test_figures_have_about_four_digits(value, text):
    assert figure(value) == text


def test_all_is_only_what_is_all():
    assert [percent(share) for share in (1, 0.99999, 0.9321, 0)] == ["100.0 %", "> 99.9 %", "93.2 %", "0.0 %"]


def test_figures_stand_right_and_texts_left():
    section = Section("t", ("name", "figure", "text"), [("1", "-2.5 %", "3"), ("x", "", "y")])
    assert [section.figures(place) for place in range(3)] == [False, True, False]


@pytest.mark.parametrize(("bound", "drawn"), [(0.21, True), (0.9, True), (0.04, False), (2.5, False)])
def test_a_bound_far_from_all_values_does_not_squeeze_them(bound, drawn):
    drawing = new_drawing("x", "x")
    panel = drawing.panel
    panel.plot([0.1, 0.5], [0, 1])
    time_axis(panel, "x")
    time_bound(panel, "x", bound, "black")
    assert len(panel.lines) == 1 + drawn
    low, high = panel.get_xlim()
    assert low > 0.05 and high < 1.1 and drawing.png.startswith(PNG)


@pytest.mark.parametrize(("values", "scale"), [([0.1, 0.4], "linear"), ([0.1, 0.6], "log"), ([0.0, 0.6], "linear")])
def test_only_wide_axes_are_logarithmic(values, scale):
    panel = new_drawing("x", "x").panel
    panel.plot([0, 1], values)
    time_axis(panel, "y")
    assert panel.get_yscale() == scale


@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize("high", [1e-3, 1e-2, 0.5, 5.0, 400.0, 1e6])
def test_ticks_do_not_overlap_over_however_many_decades(which, high):
    drawing = new_drawing("x", "x")
    values = [1e-4, high]
    drawing.panel.plot(*((values, [0, 1]) if which == "x" else ([0, 1], values)))
    time_axis(drawing.panel, which)
    drawing.figure.draw_without_rendering()
    axis = drawing.panel.xaxis if which == "x" else drawing.panel.yaxis
    low, most = sorted(drawing.panel.get_xlim() if which == "x" else drawing.panel.get_ylim())
    labels = [
        label.get_window_extent()
        for label, at in zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True)
        if label.get_text() and low <= at <= most
    ]
    edges = sorted((box.x0, box.x1) if which == "x" else (box.y0, box.y1) for box in labels)
    assert len(edges) >= 2 and all(after[0] - before[1] >= 3 for before, after in pairwise(edges))


def test_few_dots_are_large_and_many_are_not(make):
    sizes = []
    for many in (20, 1000, 5000):
        panel = new_drawing("x", "x").panel
        dots(panel, np.zeros(many), np.zeros(many), "black")
        sizes.append(panel.collections[0].get_sizes()[0])
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 4 * sizes[-1] >= 20


def test_a_simulation_whose_constants_were_not_fitted_says_so(make):
    plan = {"hardware": "h200", "costs_fitted": False}
    run = make.run_of([make.answered(0, 0.0, ttft=1)], plan=plan)
    assert all(
        "h200 has constants that were not fitted" in text
        for text in (terminal(run, 200), render(run, summarize(run), []))
    )
    fitted = make.run_of([make.answered(0, 0.0, ttft=1)], plan=plan | {"costs_fitted": True})
    assert "not fitted" not in terminal(fitted, 200)
