"""Sends a plan and keeps what comes back, to be judged when the load has ended.

The open loop never waits for the server: a request leaves when the plan says, on a connection of its own if need be, and the
client's lateness is measured. With a bound on the requests that are open a request waits for a place, as behind a gateway; its
latencies count from the plan's time all the same.

What belongs here: sending, timeouts, the client's own lateness. What does not: reading answers.
"""

import asyncio
import resource
import tempfile
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from loadtest.client.breaks import Breaks
from loadtest.client.http1 import ConnectionPool, HttpExchange, clock
from loadtest.client.judge import Raw
from loadtest.client.leaving import Leaving
from loadtest.collector import collector_off
from loadtest.report.quantiles import quantile
from loadtest.report.records import ErrorClass, RequestRecord
from loadtest.workload.arrivals import Closed
from loadtest.workload.plan import Plan, Planned

_AHEAD_BYTES = 64 << 20  # of requests built before they are due, so that building never delays sending
_SLACK = 0.003  # seconds before the next request that leave time to build another
_BURST = 8  # requests sent before answers are read again
_LAG_EVERY = 0.02
_SPOOL_BYTES = 128 << 20


@dataclass(slots=True)
class BuiltRequest:
    """A request ready for the wire, and its prompt's length for the record."""

    payload: bytes
    prompt_tokens: int


Build = Callable[[Planned], BuiltRequest]


@dataclass(slots=True)
class SpooledAnswer:
    """A record, where its answer's body lies in the spool, and when the body's pieces arrived and where they end."""

    record: RequestRecord
    offset: int = 0
    length: int = 0
    times: "array[float]" = field(default_factory=lambda: array("d"))
    ends: "array[int]" = field(default_factory=lambda: array("q"))


@dataclass(slots=True)
class Live:
    """What a progress display shows. TTFTs are those of the first byte; the report counts exactly."""

    planned: int = 0
    sent: int = 0
    done: int = 0
    failed: int = 0
    ttfts: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    lateness: deque[float] = field(default_factory=lambda: deque(maxlen=1000))

    @property
    def running(self) -> int:
        """Requests sent and not yet ended."""
        return self.sent - self.done


@dataclass(slots=True)
class ClientHealth:
    """How the client itself did: how late it sent and how late its event loop was (seconds), its share of a processor."""

    lateness: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    cpu_share: float = 0.0
    connections: int = 0
    most_running: int = 0
    breaks: int = 0

    def summary(self) -> dict[str, float]:
        """For a run's `client` entry: seconds, and the share of one processor."""
        return {
            "lateness_p50": quantile(self.lateness, 0.5),
            "lateness_p99": quantile(self.lateness, 0.99),
            "lateness_max": max(self.lateness, default=0.0),
            "loop_lag_p99": quantile(self.lags, 0.99),
            "loop_lag_max": max(self.lags, default=0.0),
            "cpu_share": self.cpu_share,
            "connections": self.connections,
            "most_running": self.most_running,
            **({"breaks": self.breaks} if self.breaks else {}),
        }

    def doubts(self, bound: float) -> list[str]:
        """Why the run must not be trusted: in more than 1 % of cases, and more than once, it was later than `bound` seconds."""
        found: list[str] = []
        for what, values in (("sent requests", self.lateness), ("came to read answers", self.lags)):
            late = [value for value in values if value > bound]
            if len(late) > max(1, len(values) / 100):
                found.append(
                    f"the client could not keep up: {len(late)} times of {len(values)} it {what} more than "
                    f"{1e3 * bound:.0f} ms late, {1e3 * max(late):.0f} ms at the most"
                )
        return found


class Driver:
    """One run's load.

    Args:
        pool: connections to the target.
        plan: what to send when.
        build: makes the bytes of a planned request.
        patience: seconds that a request may take.
        stall: seconds without a byte after which a stream is given up.
        breaks: breaks connections of streams; None: nobody does.
        leaving: says which clients leave, and when; None: all stay.
        most: requests of an open loop that may be open at once; None: any number.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        plan: Plan,
        build: Build,
        *,
        patience: float,
        stall: float,
        breaks: Breaks | None = None,
        leaving: Leaving | None = None,
        most: int | None = None,
    ) -> None:
        self.live = Live(planned=len(plan.requests))
        self.health = ClientHealth()
        self.kept: list[SpooledAnswer] = []
        self.interrupted = False
        self.ended = False
        self._pool = pool
        self._plan = plan
        self._build = build
        self._patience = patience
        self._stall = stall
        self._breaks = breaks
        self._leaving = leaving
        self._most = most or float("inf")
        self._last_end = 0.0  # of a request
        self._placed = 0.0  # when a place became free for the request that waited for one last
        self._start = 0.0
        self._open: set[HttpExchange] = set()
        self._ready: deque[tuple[Planned, BuiltRequest]] = deque()
        self._ready_bytes = 0
        self._events_over = 0
        self._rest = iter(plan.requests)
        self._idle = asyncio.Event()
        self._vacant = asyncio.Event()  # a request has ended since somebody began to wait for that
        self._wake = asyncio.Event()
        # Bodies wait here until the load has ended: in memory up to the bound, then on disk.
        self._spool = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115  lives as long as the driver

    @property
    def elapsed(self) -> float:
        """Seconds since the run's start; negative before."""
        return clock() - self._start if self._start else 0.0

    def events_so_far(self) -> int:
        """Pieces received so far over all answers, about one per event."""
        return self._events_over + sum(len(exchange.chunk_times) for exchange in self._open)

    def stop(self) -> None:
        """Send nothing more, and give up the requests that are open. Once all has ended, it is too late to stop."""
        if self.ended:
            return
        self.interrupted = True
        self._wake.set()
        self._vacant.set()
        for exchange in list(self._open):
            self._give_up(exchange, ErrorClass.CLIENT, "the run was interrupted")

    async def run(self) -> None:
        """Send everything and wait for every answer."""
        self._raise_file_limit()
        while self._build_ahead():
            await asyncio.sleep(0)  # lets a progress display show the end
        with collector_off():
            cpu, self._start = time.process_time(), clock() + 0.1
            watchers = [asyncio.create_task(self._watch()), asyncio.create_task(self._measure_lag())]
            try:
                await (self._closed_loop(self._plan.closed) if self._plan.closed else self._open_loop())
                await self._all_over()
                self.ended = True
            finally:
                for task in watchers:
                    task.cancel()
                await asyncio.gather(*watchers, return_exceptions=True)
            self.health.cpu_share = (time.process_time() - cpu) / max(self.elapsed, 1e-9)
        self.health.connections = self._pool.opened
        self.health.breaks = 0 if self._breaks is None else self._breaks.made

    def answers(self) -> Iterator[tuple[RequestRecord, Raw]]:
        """Every record with its body, by index. Call once, after the run."""
        with self._spool:
            for kept in sorted(self.kept, key=lambda kept: kept.record.index):
                self._spool.seek(kept.offset)
                yield kept.record, Raw(self._spool.read(kept.length), kept.times, kept.ends)

    async def _open_loop(self) -> None:
        burst = 0
        while not self._stopped() and (due := self._next()) is not None:
            planned, built = due
            while not self._stopped() and (left := planned.intended - self.elapsed) > 0:
                burst = 0
                if left > _SLACK and self._build_ahead():
                    await asyncio.sleep(0)
                else:
                    await self._sleep(left)
            while len(self._open) >= self._most and not self._stopped():
                self._vacant.clear()
                await self._vacant.wait()
                self._placed = self._last_end
            if self._stopped():
                return
            self._send(planned, built, planned.intended, None)
            burst += 1
            if burst % _BURST == 0:
                await asyncio.sleep(0)

    async def _closed_loop(self, closed: Closed) -> None:
        await asyncio.gather(*(self._user(closed, number) for number in range(closed.users)))

    async def _user(self, closed: Closed, number: int) -> None:
        rng = Random(f"user {number}")
        end = self._plan.duration or float("inf")
        at = 0.0  # when the user means to send
        while True:
            while not self._stopped() and (left := at - self.elapsed) > 0:
                await self._sleep(left)
            if self._stopped() or at >= end or (due := self._next()) is None:
                return
            answered = asyncio.get_running_loop().create_future()
            self._send(*due, at, answered)
            at = await answered + (rng.expovariate(1 / closed.think) if closed.think else 0.0)

    def _stopped(self) -> bool:
        return self.interrupted

    async def _sleep(self, seconds: float) -> None:
        """Sleep that long, or until the run is stopped."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _next(self) -> tuple[Planned, BuiltRequest] | None:
        if not self._ready and not self._build_ahead():
            return None
        planned, built = self._ready.popleft()
        self._ready_bytes -= len(built.payload)
        return planned, built

    def _build_ahead(self) -> bool:
        """Build one more request; False if none is left or enough are waiting."""
        if self._ready_bytes >= _AHEAD_BYTES:
            return False
        planned = next(self._rest, None)
        if planned is None:
            return False
        built = self._build(planned)
        self._ready.append((planned, built))
        self._ready_bytes += len(built.payload)
        return True

    def _send(
        self, planned: Planned, built: BuiltRequest, intended: float, answered: "asyncio.Future[float] | None"
    ) -> None:
        record = RequestRecord(
            index=planned.index,
            intended=intended,
            asked_prompt=built.prompt_tokens,
            asked_output=planned.output_tokens,
            klass=planned.klass,
            session=planned.session,
        )
        exchange = HttpExchange(built.payload, clock(), lambda ended: self._over(ended, record, answered))
        if self._breaks is not None:
            self._breaks.watch(exchange, planned.index)
        if self._leaving is not None:
            self._leaving.watch(exchange, planned.index, planned.output_tokens, self._leave)
        record.sent = exchange.sent - self._start
        lateness = record.sent - intended
        assert lateness >= 0, "a request must not leave early: its latencies would be too short"
        own = record.sent - max(intended, self._placed)
        self.health.lateness.append(own)
        self.live.lateness.append(own)
        self.live.sent += 1
        self._open.add(exchange)
        self.health.most_running = max(self.health.most_running, len(self._open))
        self._idle.clear()
        self._pool.send(exchange)

    def _over(self, exchange: HttpExchange, record: RequestRecord, answered: "asyncio.Future[float] | None") -> None:
        start = self._start
        record.headers = None if exchange.headers is None else exchange.headers - start
        record.finished = None if exchange.finished is None else exchange.finished - start
        record.status, record.error, record.detail = exchange.status, exchange.error, exchange.detail
        times = array("d", (at - start for at in exchange.chunk_times))
        offset = self._spool.seek(0, 2)
        self._spool.write(exchange.body)
        self.kept.append(SpooledAnswer(record, offset, len(exchange.body), times, exchange.chunk_ends))
        self._events_over += len(exchange.chunk_times)
        self.live.done += 1
        left = exchange.error is ErrorClass.LEFT
        self.live.failed += not left and (exchange.error is not None or exchange.status != 200)
        if times and exchange.status == 200:
            self.live.ttfts.append(times[0] - record.intended)
        self._open.discard(exchange)
        self._last_end = self.elapsed
        self._vacant.set()
        if not self._open:
            self._idle.set()
        if answered is not None and not answered.done():
            answered.set_result(record.finished or self.elapsed)

    async def _all_over(self) -> None:
        while self._open:
            await self._idle.wait()

    async def _watch(self) -> None:
        """Give up requests that take too long or stay silent for too long."""
        while True:
            await asyncio.sleep(min(self._patience, self._stall, 1.0) / 4)
            now = clock()
            for exchange in list(self._open):
                if now - exchange.sent > self._patience:
                    self._give_up(exchange, ErrorClass.TIMEOUT, f"not answered within {self._patience:g} s")
                elif exchange.headers is not None and now - exchange.last_heard > self._stall:
                    self._give_up(exchange, ErrorClass.STALL, f"stalled: no byte for {self._stall:g} s")

    def _leave(self, exchange: HttpExchange) -> None:
        if exchange.finished is None:
            self._give_up(exchange, ErrorClass.LEFT, "the client left, as planned")

    def _give_up(self, exchange: HttpExchange, error: ErrorClass, detail: str) -> None:
        connection = exchange.connection
        exchange.end(clock(), error, detail)
        if connection is not None:
            connection.drop()

    async def _measure_lag(self) -> None:
        """How late the event loop gets to what is due: answers are read that much too late."""
        while True:
            due = clock() + _LAG_EVERY
            await asyncio.sleep(_LAG_EVERY)
            self.health.lags.append(max(0.0, clock() - due))

    def _raise_file_limit(self) -> None:
        """Every connection is a file, and an overloaded server has more open streams than the usual limit of 1,024."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
