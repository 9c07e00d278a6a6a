"""Kills and stops a process every now and then, drawn by a seed, and tells what came of each kind of fault."""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from tests.e2e.chaos.clients import Asked, Clients
from tests.e2e.chaos.pool import HTTP, KEEPER, Pool

LEAST, MOST = 20.0, 60.0  # seconds between two faults
STOPPED = (1.0, 12.0)  # seconds from SIGSTOP to SIGCONT: short of a hang, and beyond it
SHORT = (1.0, 3.0)  # the same for the HTTP process


@dataclass
class Fault:
    """One fault."""

    what: str
    whom: str
    at: float
    open: int  # requests at that time
    replayed: float = 0.0

    @property
    def kind(self) -> str:
        who = self.whom if self.whom in (HTTP, KEEPER) else "an engine"
        return f"{who} {self.what}"


class Faults:
    """What is done to the pool.

    Args:
        pool: the processes.
        seed: of all that is drawn.
    """

    def __init__(self, pool: Pool, seed: int) -> None:
        self._pool, self._draw = pool, random.Random(seed)
        self.done: list[Fault] = []
        self.reachable = asyncio.Event()
        self.reachable.set()

    async def run(self, clients: Clients, seconds: float) -> None:
        """Break something every now and then, for so long, while these clients ask."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, self._draw.uniform(LEAST, MOST)))
            if time.monotonic() < until:
                await self._break(clients)

    async def _break(self, clients: Clients) -> None:
        processes = await asyncio.to_thread(self._pool.processes)
        weights = [{HTTP: 1.0, KEEPER: 2.0}.get(name, 2.0) for name in processes]
        (whom,) = self._draw.choices(list(processes), weights)
        what = self._draw.choice(("killed", "killed", "stopped"))
        replayed = await asyncio.to_thread(self._pool.metric, "headrace_replayed_requests_total")
        fault = Fault(what, whom, time.monotonic(), clients.open)
        self.done.append(fault)
        if what == "stopped":
            await self._stop(processes[whom], SHORT if whom == HTTP else STOPPED)
        elif whom == HTTP:
            self.reachable.clear()
            processes[whom].kill()
            await asyncio.to_thread(self._pool.start_again)
            await asyncio.to_thread(self._pool.wait_ready)
            self.reachable.set()
            return
        else:
            processes[whom].kill()
        await asyncio.sleep(5.0)
        fault.replayed = await asyncio.to_thread(self._pool.metric, "headrace_replayed_requests_total") - replayed

    async def _stop(self, process: psutil.Process, seconds: tuple[float, float]) -> None:
        process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(self._draw.uniform(*seconds))
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):  # it counted as hanging, and was killed
                process.send_signal(signal.SIGCONT)

    def http_killed(self, since: float) -> bool:
        return any(fault.at >= since - 1.0 for fault in self.done if fault.kind == f"{HTTP} killed")


def hit_by(faults: Sequence[Fault], asked: Sequence[Asked]) -> list[Asked]:
    """The requests that were open when one of these happened."""
    return [one for one in asked if any(one.begun <= each.at <= one.ended for each in faults)]


def table(faults: Sequence[Fault], asked: Sequence[Asked]) -> str:
    """A line for each kind of fault: how often, and what clients saw that had a request open then."""
    rows = [("fault", "times", "open then", "replayed", "answered", "left", "conn. lost", "lost", "longest pause")]
    for kind in sorted({fault.kind for fault in faults}):
        mine = [fault for fault in faults if fault.kind == kind]
        hit = hit_by(mine, asked)
        seen = [sum(one.outcome == word for one in hit) for word in ("answered", "left", "connection lost")]
        pause = max((one.pause for one in hit), default=0.0)
        counts = [len(mine), len(hit), round(sum(each.replayed for each in mine)), *seen, sum(one.lost for one in hit)]
        rows.append((kind, *map(str, counts), f"{pause:.2f} s"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
