"""Replicas that take turns, each simulated by itself and in as many processes as there are cores.

Where requests go round, and nobody is handed over, refused for a deadline or dies, no replica learns anything of another, as
long as none is full: turns pass over those that are. So each plays its own requests, as if it were alone, and the records are
put together again. If one of them may have been full, all is played together after all.
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from math import ceil

from loadtest.report.records import RequestRecord
from loadtest.simulate.cluster import Cluster, ServerShape
from loadtest.simulate.content import length_of
from loadtest.simulate.cost import CostModel
from loadtest.workload.plan import Planned
from scheduler.router.round_robin import RoundRobin
from scheduler.types.messages import EngineStats

FEW = 5_000  # requests that are as soon played as processes are started

Played = tuple[list[RequestRecord], EngineStats]  # of one replica


class ReplicaFull(Exception):
    """A replica may have been full for the next request, whose turn would have passed to another."""


class ApartCluster(Cluster):
    """Mixed replicas in turns.

    Args:
        cost: what a step costs on one replica.
        shape: the settings of each replica.
        replicas: how many.
        processes: most that are started; 1: all is done here.

    Raises:
        SpecError: see `Cluster`.
    """

    def __init__(self, cost: CostModel, shape: ServerShape, replicas: int, processes: int | None = None) -> None:
        super().__init__(cost, shape, RoundRobin(), replicas)
        self._shape = shape
        self._processes = min(replicas, len(os.sched_getaffinity(0)) if processes is None else processes)
        self._stats: list[EngineStats] = []

    def stats(self) -> Iterator[EngineStats]:
        """The schedulers' own counters, replica by replica."""
        return iter(self._stats) if self._stats else super().stats()

    def run(self, requests: Iterable[Planned], progress: Callable[[int], None] = lambda _: None) -> list[RequestRecord]:
        """Simulate to the last token.

        Args:
            requests: in the order of their arrival.
            progress: called after each replica with the number of requests that have been played so far.
        """
        requests = list(requests)
        try:
            return self._run_apart(requests, progress)
        except ReplicaFull:
            self.records.clear()
            return super().run(requests, progress)

    def _run_apart(self, requests: Sequence[Planned], progress: Callable[[int], None]) -> list[RequestRecord]:
        turns = dealt(requests, len(self.replicas), self.config.context)
        found: dict[int, EngineStats] = {}
        for replica, (records, stats) in self._played(turns, few=len(requests) < FEW):
            found[replica] = stats
            for record, place in zip(records, turns[replica], strict=True):
                record.index = place.index
            self.records += records
            progress(len(self.records))
        self.records.sort(key=lambda record: record.index)
        self._stats = [found[replica] for replica in sorted(found)]
        return self.records

    def _played(self, turns: list[list[Planned]], *, few: bool) -> Iterator[tuple[int, Played]]:
        """Each replica with what came of its requests, as they are done."""
        work = TurnsWork(self._cost, self._shape, turns, longest(turns, self.config.context))
        if few or self._processes == 1:
            for replica in range(len(turns)):
                yield replica, work.play(replica)
            return
        with ProcessPoolExecutor(self._processes, initializer=_begin, initargs=(work,)) as pool:
            try:
                futures = {pool.submit(_play, replica): replica for replica in range(len(turns))}
                for future in as_completed(futures):
                    yield futures.pop(future), future.result()
                    del future  # its records are the caller's now
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


class AloneCluster(Cluster):
    """One replica of several that take turns.

    Args:
        cost, shape: its own.
        longest: tokens of the longest request that any of them may get.
    """

    def __init__(self, cost: CostModel, shape: ServerShape, longest: int) -> None:
        super().__init__(cost, shape, RoundRobin())
        self._most_blocks = ceil(longest / shape.block_size)

    def _place(self, record: RequestRecord, request: Planned, now: float) -> None:
        """Raises ReplicaFull if there is no room for one more after this one, whatever its length."""
        super()._place(record, request, now)
        one_more = self.replicas[0].open + 1
        if one_more > self.config.max_running or one_more * self._most_blocks > self.blocks:
            raise ReplicaFull


@dataclass(frozen=True, slots=True)
class TurnsWork:
    """What is to be played.

    Attributes:
        cost: of steps.
        shape: of each replica.
        turns: the requests of each.
        longest: tokens of the longest of them.
    """

    cost: CostModel
    shape: ServerShape
    turns: list[list[Planned]]
    longest: int

    def play(self, replica: int) -> Played:
        """One replica's part. Raises ReplicaFull."""
        cluster = AloneCluster(self.cost, self.shape, self.longest)
        records = cluster.run(self.turns[replica])
        (stats,) = cluster.stats()
        return records, stats


def longest(turns: Iterable[Iterable[Planned]], context: int) -> int:
    """Tokens of the longest request that fits."""
    lengths = (length_of(each) + each.output_tokens for own in turns for each in own)
    return max((length for length in lengths if length <= context), default=0)


def dealt(requests: Sequence[Planned], replicas: int, context: int) -> list[list[Planned]]:
    """The requests of each replica. What does not fit is refused before it has its turn."""
    turns: list[list[Planned]] = [[] for _ in range(replicas)]
    turn = 0
    for request in requests:
        turns[turn % replicas].append(request)
        turn += length_of(request) + request.output_tokens <= context
    return turns


_work: list[TurnsWork] = []  # of a process that was started for it


def _begin(work: TurnsWork) -> None:
    """What a process has to do. Ctrl-C is for who started it, and SIGTERM ends it."""
    _work.append(work)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _play(replica: int) -> Played:
    return _work[-1].play(replica)
