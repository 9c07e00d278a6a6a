"""Shows a run's progress on stderr: a live table on a terminal, a line every ten seconds elsewhere."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadtest.client.sender import Driver
from loadtest.report.quantiles import quantile

if TYPE_CHECKING:
    from rich.table import Table

_EVERY = 0.5  # drawing takes some milliseconds, in which no answer is read
_EVERY_ELSEWHERE = 10.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is shown; `events_rate` is events per second over all answers since the last snapshot, about one token each."""

    elapsed: float
    planned: int
    sent: int
    running: int
    done: int
    failed: int
    events_rate: float
    ttft_ms: float
    late_ms: float

    def cells(self) -> list[tuple[str, str]]:
        """Title and value of each column."""
        return [
            ("time", f"{self.elapsed:.0f} s"),
            ("sent", f"{self.sent}/{self.planned}"),
            ("running", str(self.running)),
            ("done", str(self.done)),
            ("failed", str(self.failed)),
            ("events/s", f"{self.events_rate:.0f}"),
            ("TTFT p50", f"{self.ttft_ms:.0f} ms"),
            ("client late p99", f"{self.late_ms:.1f} ms"),
        ]


class Progress:
    """Watches a driver."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._events, self._at = 0, 0.0

    def snapshot(self) -> Snapshot:
        """Where the run stands. TTFT and lateness are those of the last 1,000 requests."""
        live, now = self._driver.live, max(0.0, self._driver.elapsed)
        events = self._driver.events_so_far()
        rate = (events - self._events) / (now - self._at) if now > self._at else 0.0
        self._events, self._at = events, now
        return Snapshot(
            elapsed=now,
            planned=live.planned,
            sent=live.sent,
            running=live.running,
            done=live.done,
            failed=live.failed,
            events_rate=rate,
            ttft_ms=1e3 * quantile(live.ttfts, 0.5),
            late_ms=1e3 * quantile(live.lateness, 0.99),
        )

    async def show(self) -> None:
        """Show progress until cancelled."""
        if sys.stderr.isatty():
            await self._live()
        while True:
            await asyncio.sleep(_EVERY_ELSEWHERE)
            print("  ".join(f"{title} {value}" for title, value in self.snapshot().cells()), file=sys.stderr)

    async def _live(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        with Live(_table(self.snapshot()), console=console, auto_refresh=False, transient=True) as live:
            while True:
                await asyncio.sleep(_EVERY)
                live.update(_table(self.snapshot()), refresh=True)


def _table(snapshot: Snapshot) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title, _ in snapshot.cells():
        table.add_column(title, justify="right", style="bold" if title == "done" else "")
    table.add_row(*(value for _, value in snapshot.cells()))
    return table


@contextmanager
def shown(driver: Driver, wanted: bool) -> Iterator[None]:
    """Show progress, if `wanted`, while the block runs. Needs a running event loop."""
    task = asyncio.get_running_loop().create_task(Progress(driver).show()) if wanted else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
