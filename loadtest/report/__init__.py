"""Turns a run into a table and a page with pictures for people, and JSON for other tools."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.report.records import LoadRun
from loadtest.report.run_file import write_run

if TYPE_CHECKING:  # numpy and matplotlib are imported only when a report is wanted
    from loadtest.report.columns import Columns
    from loadtest.report.metrics import Summary

RUN = "run.json"


class RunReport:
    """The report of a run, whose figures are computed once."""

    def __init__(self, run: LoadRun) -> None:
        self.run = run

    @cached_property
    def _columns(self) -> "Columns":
        from loadtest.report.columns import Columns

        return Columns.of(self.run)

    @cached_property
    def summary(self) -> "Summary":
        """All figures."""
        from loadtest.report.metrics import summarize

        return summarize(self.run, self._columns)

    def write(self, folder: Path) -> list[Path]:
        """Write the run and its page into `folder`, which is created if missing: the run first, so that no picture can lose it.

        Returns the files written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_run(self.run, folder / RUN)
        return [folder / RUN, *self.write_page(folder)]

    def write_page(self, folder: Path) -> list[Path]:
        """Write `report.html` and its pictures as PNG files into `folder`. Returns the files written."""
        from loadtest.report.pages import html
        from loadtest.report.pages.plots import View, plots

        pictures = plots(View.of(self.run, self._columns))
        (folder / "report.html").write_text(html.render(self.run, self.summary, pictures), encoding="utf-8")
        drawings = [drawing for picture in pictures for drawing in picture.drawings]
        for each in drawings:
            (folder / f"{each.name}.png").write_bytes(each.png)
        return [folder / "report.html", *(folder / f"{each.name}.png" for each in drawings)]

    def print_table(self) -> None:
        """Print the figures on the terminal."""
        from loadtest.report.table import show

        show(self.run, self.summary)
