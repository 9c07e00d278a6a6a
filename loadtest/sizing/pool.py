"""Trials, several at a time where there are cores: processes that know the bench and are told a trial."""

import signal
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from typing import Self

import psutil

from loadtest.sizing.trial import FleetOutcome, SizingBench, SizingTrial, try_fleet
from loadtest.stops import STOPS, held


class TrialPool:
    """Simulates, and remembers what it has simulated.

    As a context it has its processes; when it is left early, what has not begun is not simulated, and when it is interrupted they
    end at once.

    Args:
        bench: what all trials have in common.
        jobs: how many run at a time; 1: in this process.

    Attributes:
        outcomes: of all trials, in the order in which they were asked for.
    """

    def __init__(self, bench: SizingBench, jobs: int = 1) -> None:
        self.bench = bench
        self.jobs = jobs
        self._executor: ProcessPoolExecutor | None = None
        self._known: dict[SizingTrial, FleetOutcome] = {}

    def __enter__(self) -> Self:
        if self.jobs > 1:
            self._executor = ProcessPoolExecutor(self.jobs, initializer=keep_bench, initargs=(self.bench,))
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: object) -> None:
        executor, self._executor = self._executor, None
        if executor is None:
            return
        interrupted = kind is KeyboardInterrupt
        executor.shutdown(wait=not interrupted, cancel_futures=True)
        if interrupted:
            for process in psutil.Process().children():  # nobody waits for what they simulate
                with suppress(psutil.NoSuchProcess):  # one that had nothing to do has ended by itself
                    process.terminate()
            executor.shutdown(cancel_futures=True)

    @property
    def outcomes(self) -> list[FleetOutcome]:
        """Of all trials so far."""
        return list(self._known.values())

    def measure(self, trials: Sequence[SizingTrial]) -> list[FleetOutcome]:
        """Their outcomes, in the same order."""
        new = [trial for trial in dict.fromkeys(trials) if trial not in self._known]
        if self._executor is None:
            found: Iterable[FleetOutcome] = (try_fleet(self.bench, trial) for trial in new)
        else:
            with held():  # the first trials start the processes
                found = self._executor.map(try_kept_fleet, new)
        self._known.update(zip(new, found, strict=True))
        return [self._known[trial] for trial in trials]

    def good(self, outcome: FleetOutcome) -> bool:
        """Whether the goal is reached."""
        return not outcome.stopped and outcome.attainment >= self.bench.goal

    def first_good(self, trials: Sequence[SizingTrial]) -> FleetOutcome | None:
        """The first trial in their order that reaches the goal, as far as must be looked; None if none does."""
        for start in range(0, len(trials), self.jobs):
            for outcome in self.measure(trials[start : start + self.jobs]):
                if self.good(outcome):
                    return outcome
        return None


_kept: list[SizingBench] = []  # of this process, which has been started to simulate


def keep_bench(bench: SizingBench) -> None:
    """A process begins: it simulates this bench, and leaves it to the process that started it what a signal means."""
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)  # they waited while it was made
    _kept[:] = [bench]


def try_kept_fleet(trial: SizingTrial) -> FleetOutcome:
    """Simulate in a process that has been started for it."""
    return try_fleet(_kept[0], trial)
