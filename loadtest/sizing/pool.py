"""Trials, several at a time where there are cores: processes that know the bench and are told a trial."""

import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import psutil

from loadtest.sizing.trial import FleetOutcome, SizingBench, SizingTrial, try_fleet
from loadtest.stops import STOPS


class TrialPool:
    """Simulates, and remembers what it has simulated.

    Args:
        bench: what all trials have in common.
        jobs: how many run at a time.
        executor: processes that were started for this bench; None: this process does it.

    Attributes:
        outcomes: of all trials, in the order in which they were asked for.
    """

    def __init__(self, bench: SizingBench, jobs: int, executor: ProcessPoolExecutor | None) -> None:
        self.bench = bench
        self.jobs = jobs
        self._executor = executor
        self._known: dict[SizingTrial, FleetOutcome] = {}

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


@contextmanager
def trial_pool(bench: SizingBench, jobs: int) -> Iterator[TrialPool]:
    """A pool with so many processes. When it is left early, what has not begun is not simulated; when it is interrupted, the
    processes end at once."""
    if jobs == 1:
        yield TrialPool(bench, jobs, None)
        return
    executor = ProcessPoolExecutor(jobs, initializer=keep_bench, initargs=(bench,))
    try:
        yield TrialPool(bench, jobs, executor)
    except KeyboardInterrupt:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in psutil.Process().children():  # nobody waits for what they simulate
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


_kept: list[SizingBench] = []  # of this process, which has been started to simulate


def keep_bench(bench: SizingBench) -> None:
    """A process begins: it simulates this bench, and leaves it to the process that started it what a signal means."""
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _kept[:] = [bench]


def try_kept_fleet(trial: SizingTrial) -> FleetOutcome:
    """Simulate in a process that has been started for it."""
    return try_fleet(_kept[0], trial)
