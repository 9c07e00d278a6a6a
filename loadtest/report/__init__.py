"""Turns a run into a table and a page with pictures for people, and JSON for other tools."""

from pathlib import Path

from loadtest.report.records import LoadRun


def write_report(run: LoadRun, folder: Path) -> list[Path]:
    """Write `run.json`, `report.html` and the page's pictures as PNG files into `folder`, which is created if missing.

    The JSON comes first, so that a run is not lost if a picture fails. Returns the files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run.write(folder / "run.json")
    # numpy and matplotlib are imported only when a report is wanted.
    from loadtest.report import html
    from loadtest.report.metrics import summarize
    from loadtest.report.plots import View, plots

    view = View.of(run)
    pictures = plots(view)
    (folder / "report.html").write_text(html.render(run, summarize(run, view.columns), pictures), encoding="utf-8")
    for each in pictures:
        (folder / f"{each.name}.png").write_bytes(each.png)
    return [folder / "run.json", folder / "report.html", *(folder / f"{each.name}.png" for each in pictures)]


def print_table(run: LoadRun) -> None:
    """Print the figures of a run on the terminal."""
    from loadtest.report.metrics import summarize
    from loadtest.report.table import show

    show(run, summarize(run))
