"""The cost model's constants from measured runs, by least squares.

A run says when tokens came, not what each step computed. So the run is simulated with the constants of the last round; the
simulation says how much work lay between a request's arrival, its first and its last token. The time of that work is linear in
the constants and should equal the measured interval: one equation per interval, divided by its length so that errors are
relative. Solve, simulate again, and repeat until the constants settle.

A server that guesses tokens ahead brings several in some steps: the simulation has the guesses that were right in the run, too.
With the constants known, the chances by which answers repeat themselves are moved until drawn guesses bring as much.

Constants are never negative: Lawson and Hanson (1974), "Solving Least Squares Problems", chapter 23 (NNLS).
A client's times cannot tell `delivery` from `request`, so `delivery` stays as it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from loadtest.report.records import LoadRun, RequestRecord
from loadtest.simulate.calibration.answers import RightGuesses, counted, moved, right_guesses
from loadtest.simulate.calibration.served import sums_of
from loadtest.simulate.cluster import Cluster, ServerShape
from loadtest.simulate.cost import STEP_COSTS, CostModel
from loadtest.simulate.guesses.recorded import RecordedAnswers
from loadtest.simulate.guesses.repeating import drawn_guesses
from loadtest.simulate.replica import Log
from loadtest.simulate.specs import Costs
from loadtest.workload.plan import Planned
from scheduler.router.round_robin import RoundRobin

Floats = npt.NDArray[np.float64]
FITTED = (*STEP_COSTS, "request")
ROUNDS = 10
_CHANCE_ROUNDS = 16
_DAMPING = 0.6  # of a round's change; with a full queue, a small error of the steps is a large one of the waiting time
_SETTLED = 1e-3
_SHORTEST = 1e-3  # seconds; shorter intervals are not weighted more


@dataclass(frozen=True, slots=True)
class CalibrationRun:
    """A run, and how its server was set up."""

    run: LoadRun
    shape: ServerShape


def requests_of(run: LoadRun) -> list[Planned]:
    """The requests of a run that have a complete answer, with their real lengths. Prompts share what their sessions share."""
    return [
        Planned(
            index=record.index,
            intended=record.intended,
            prompt_tokens=record.prompt_tokens or record.asked_prompt,
            output_tokens=record.output_tokens or record.asked_output,
            klass=record.klass,
            session=record.session,
        )
        for record in whole(run)
    ]


def whole(run: LoadRun) -> list[RequestRecord]:
    """The records with a complete answer, each as if intended when it was sent: the client's lateness is not predicted."""
    found = [record for record in run.records if record.ok and record.tokens]
    sent = [replace(each, intended=each.intended if each.sent is None else each.sent) for each in found]
    return sorted(sent, key=lambda record: record.intended)


def predict(measured: CalibrationRun, cost: CostModel, seed: int = 0) -> list[RequestRecord]:
    """The simulator's records for the same requests on one replica, in the order of `whole`. `seed` is of where answers repeat."""
    guesses = partial(drawn_guesses, cost.costs, seed)
    return Cluster(cost, measured.shape, RoundRobin(), guesses=guesses).run(requests_of(measured.run))


def _repeated(measured: CalibrationRun, cost: CostModel, log: Log) -> list[RequestRecord]:
    """The same with the guesses that the server made, as far as they were right."""
    told = right_guesses(measured.run).tokens
    answers = [record.tokens for record in whole(measured.run)]
    guesses = partial(RecordedAnswers, answers) if told else _no_guesses
    return Cluster(cost, measured.shape, RoundRobin(), log=log, guesses=guesses).run(requests_of(measured.run))


def _no_guesses() -> None:
    return None


def fit(runs: Sequence[CalibrationRun], cost: CostModel) -> Costs:
    """The constants that explain the runs best. `cost` gives the first guess and what is not fitted.

    Raises:
        ValueError: a run has no complete answer.
    """
    if empty := [measured.run.label for measured in runs if not whole(measured.run)]:
        raise ValueError(f"{empty[0]!r} has no complete answer to learn from")
    costs = cost.costs
    for round_ in range(ROUNDS):
        model = CostModel(cost.hardware.with_costs(costs), cost.model, cost.devices)
        rows, seconds = _equations(runs, model)
        weights = 1 / np.maximum(seconds, _SHORTEST)
        solved = nonnegative(rows * weights[:, None], seconds * weights)
        before = np.array([getattr(costs, name) for name in FITTED])
        after = solved if round_ == 0 else before + _DAMPING * (solved - before)
        costs = replace(costs, **dict(zip(FITTED, map(float, after), strict=True)))
        if np.abs(after - before).max() <= _SETTLED * np.abs(before).max():
            break
    return _with_chances(runs, CostModel(cost.hardware.with_costs(costs), cost.model, cost.devices))


def _with_chances(runs: Sequence[CalibrationRun], cost: CostModel) -> Costs:
    """The constants with the chances by which guesses bring as much as they did."""
    real = sum((right_guesses(measured.run) for measured in runs), RightGuesses())
    costs = moved(cost.costs, real, RightGuesses())
    for _ in range(_CHANCE_ROUNDS if real.tokens else 0):
        model = CostModel(cost.hardware.with_costs(costs), cost.model, cost.devices)
        simulated = sum((counted(predict(measured, model)) for measured in runs), RightGuesses())
        if simulated.near(real):
            break
        costs = moved(costs, real, simulated)
    return costs


def nonnegative(matrix: Floats, target: Floats) -> Floats:
    """The x >= 0 that minimises |matrix x - target|, by NNLS.

    Args:
        matrix: [equations, constants].
        target: [equations].
    """
    scale = np.maximum(np.linalg.norm(matrix, axis=0), 1e-300)
    matrix = matrix / scale
    found = np.zeros(matrix.shape[1])
    free = np.zeros(matrix.shape[1], dtype=bool)
    for _ in range(10 * len(found)):
        slope = matrix.T @ (target - matrix @ found)
        slope[free] = -np.inf
        if slope.max(initial=-np.inf) <= 1e-9 * np.linalg.norm(target):
            break
        free[slope.argmax()] = True
        found = _feasible(matrix, target, found, free)
    return np.asarray(found / scale, dtype=np.float64)


def _feasible(matrix: Floats, target: Floats, found: Floats, free: npt.NDArray[np.bool_]) -> Floats:
    """Least squares over the free constants; those that would go below zero are fixed at zero again, and `free` updated."""
    while True:
        solved = np.zeros_like(found)
        solved[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
        low = free & (solved <= 0)
        if not low.any():
            return solved
        step = (found[low] / np.maximum(found[low] - solved[low], 1e-300)).min()
        found = found + step * (solved - found)
        free &= found > 1e-15
        found[~free] = 0.0


def _equations(runs: Sequence[CalibrationRun], cost: CostModel) -> tuple[Floats, Floats]:
    """Rows of what the constants multiply, and the seconds that each row should amount to."""
    rows: list[Floats] = []
    seconds: list[float] = []
    for measured in runs:
        log: Log = []
        simulated = _repeated(measured, cost, log)
        work = _WorkBy(log, cost)
        for real, sim in zip(whole(measured.run), simulated, strict=True):
            for row, interval in _intervals(real, sim, work):
                rows.append(row)
                seconds.append(interval)
        sums = sums_of(measured.run)
        if sums.steps is not None:
            rows.append(work.until(float("inf"), request=0.0))
            seconds.append(sums.steps)
        if sums.prefills:
            rows.append(sum((_prefill(sim, work) for sim in simulated), np.zeros(len(FITTED))))
            seconds.append(sums.prefills)
    return np.array(rows), np.array(seconds)


def _intervals(real: RequestRecord, sim: RequestRecord, work: "_WorkBy") -> Iterator[tuple[Floats, float]]:
    """Two equations of a request: from its arrival to its first token, and from the first to the last."""
    if not sim.tokens or real.ttft is None:
        return
    arrived = sim.intended
    yield work.until(sim.tokens[0][0], request=1.0) - work.until(arrived, request=0.0), real.ttft - work.delivery
    if len(real.tokens) > 1 and len(sim.tokens) > 1:
        row = work.until(sim.tokens[-1][0], request=0.0) - work.until(sim.tokens[0][0], request=0.0)
        yield row, real.tokens[-1][0] - real.tokens[0][0]


def _prefill(sim: RequestRecord, work: "_WorkBy") -> Floats:
    """The work from a request's start in a step to its first token, by the server's clock."""
    if not sim.tokens or sim.timings is None:
        return np.zeros(len(FITTED))
    first = sim.tokens[0][0]  # as the client sees it
    return work.until(first, request=0.0) - work.until(first - sim.timings["prefill_ms"] / 1e3, request=0.0)


class _WorkBy:
    """Sums of the steps' features from the start of a simulation to a given time; a running step counts in part."""

    def __init__(self, log: Log, cost: CostModel) -> None:
        self.delivery = cost.costs.delivery
        self._at = np.array([time for begin, end, _ in log for time in (begin, end)])
        done = np.cumsum([features for _, _, features in log], axis=0)
        self._sums = np.zeros((2 * len(log), len(STEP_COSTS)))
        self._sums[1::2] = done
        self._sums[2::2] = done[:-1]

    def until(self, time: float, *, request: float) -> Floats:
        """The sums at `time`, with `request` as the last column; a token is seen `delivery` seconds after its step."""
        time -= self.delivery if request or time != float("inf") else 0.0
        sums = [float(np.interp(time, self._at, column)) for column in self._sums.T]
        return np.array([*sums, request])
