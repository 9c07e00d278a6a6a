"""A report for the terminal."""

from collections.abc import Iterator

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from loadtest.report.metrics import Summary
from loadtest.report.records import LoadRun
from loadtest.report.rows import Section, sections
from loadtest.report.trust import cautions, measured_text

SHORT = 10  # cells of up to this many characters are not wrapped


def render(run: LoadRun, summary: Summary) -> Group:
    """The whole report; reasons not to trust it come first."""
    return Group(*_parts(run, summary))


def _parts(run: LoadRun, summary: Summary) -> Iterator[RenderableType]:
    yield Text(f"{run.label} · {run.target} · {run.duration:,.1f} s", style="bold")
    if said := measured_text(run):
        yield Text(said)
    for reason in run.invalid:
        yield Text(f"INVALID: {reason}", style="bold red")
    for caution in cautions(run):
        yield Text(f"CAUTION: {caution}", style="bold yellow")
    if run.problems:
        yield Text(f"{len(run.problems)} rows of the trace left out, the first: {run.problems[0]}", style="yellow")
    for section in sections(run, summary):
        yield Text()
        yield section_table(section)


def section_table(section: Section) -> Table:
    """One section, with figures aligned right and text left."""
    table = Table(title=section.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, name in enumerate(section.header):
        right = section.figures(place)
        short = place > 0 and max((len(row[place]) for row in section.rows), default=0) <= SHORT
        table.add_column(Text(name), justify="right" if right else "left", no_wrap=right or short)
    for row in section.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def show(run: LoadRun, summary: Summary, console: Console | None = None) -> None:
    """Print the report, by default on standard output."""
    (console or Console()).print(render(run, summary))
