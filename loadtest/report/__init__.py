"""Turns a run into a table and a page with pictures for people, and JSON for other tools."""

from pathlib import Path

from loadtest.report.records import LoadRun
from loadtest.report.run_file import write_run

RUN = "run.json"


def write_report(run: LoadRun, folder: Path) -> list[Path]:
    """Write the run and its page into `folder`, which is created if missing: the run first, so that no picture can lose it.

    Returns the files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_run(run, folder / RUN)
    return [folder / RUN, *write_page(run, folder)]


def write_page(run: LoadRun, folder: Path) -> list[Path]:
    """Write `report.html` and its pictures as PNG files into `folder`. Returns the files written."""
    # numpy and matplotlib are imported only when a report is wanted.
    from loadtest.report.metrics import summarize
    from loadtest.report.pages import html
    from loadtest.report.pages.plots import View, plots

    view = View.of(run)
    pictures = plots(view)
    (folder / "report.html").write_text(html.render(run, summarize(run, view.columns), pictures), encoding="utf-8")
    drawings = [drawing for picture in pictures for drawing in picture.drawings]
    for each in drawings:
        (folder / f"{each.name}.png").write_bytes(each.png)
    return [folder / "report.html", *(folder / f"{each.name}.png" for each in drawings)]


def print_table(run: LoadRun) -> None:
    """Print the figures of a run on the terminal."""
    from loadtest.report.metrics import summarize
    from loadtest.report.table import show

    show(run, summarize(run))
