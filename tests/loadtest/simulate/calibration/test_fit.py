"""Constants are found again from runs that a simulation with known ones made."""

import random
from dataclasses import replace

import numpy as np
import pytest

from loadtest.report.records import LoadRun
from loadtest.simulate.calibration.cli import errors_of
from loadtest.simulate.calibration.fit import CalibrationRun, fit, nonnegative, requests_of
from loadtest.simulate.cluster import Cluster, ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.replica import Log
from loadtest.simulate.specs import Costs, load_hardware, load_model
from loadtest.workload.plan import Planned
from scheduler.router.round_robin import RoundRobin

TRUE = Costs(step=0.004, token=2e-5, sequence=3e-4, matrices=2.0, attention=3.0, request=0.02, delivery=0.002)
SHAPE = ServerShape(max_step_tokens=128, kv_blocks=2000)


def cost(costs: Costs) -> CostModel:
    return CostModel(load_hardware("cpu-2core").with_costs(costs), load_model("smollm2-135m"))


def made(seed: int, rate: float) -> CalibrationRun:
    rng = random.Random(seed)
    at, requests = 0.0, []
    for index in range(30):
        at += rng.expovariate(rate)
        lengths = {"prompt_tokens": rng.randint(5, 900), "output_tokens": rng.randint(2, 60)}
        requests.append(Planned(index=index, intended=at, **lengths))
    log: Log = []
    records = Cluster(cost(TRUE), SHAPE, RoundRobin(), log=log).run(requests)
    run = LoadRun(label=str(seed), target="", started=0.0, duration=1.0, plan={}, records=records)
    run.scraped = {
        "before": {"headrace_step_seconds_sum": 5.0},
        "after": {"headrace_step_seconds_sum": 5.0 + sum(end - begin for begin, end, _ in log)},
    }
    return CalibrationRun(run, SHAPE)


def test_the_plan_of_a_run_comes_back():
    measured = made(1, 1.0)
    records = measured.run.records
    assert [(each.intended, each.prompt_tokens, each.output_tokens) for each in requests_of(measured.run)] == [
        (record.intended, record.prompt_tokens, len(record.tokens)) for record in records
    ]


def test_known_constants_are_found_again_from_a_bad_guess():
    start = replace(TRUE, step=0.02, token=0.0, sequence=0.0, matrices=1.0, attention=1.0, request=0.0)
    held_out = made(9, 3.0)
    assert not all(error.within for error in errors_of(held_out, cost(start)))
    found = fit([made(1, 0.5), made(2, 2.0), made(3, 6.0)], cost(start))
    assert found.delivery == TRUE.delivery
    assert all(error.within for error in errors_of(held_out, cost(found)))


def test_a_prediction_by_the_true_constants_has_no_error():
    assert [error.relative for error in errors_of(made(4, 2.0), cost(TRUE))] == pytest.approx([0.0] * 9)


def test_least_squares_without_negative_numbers():
    rng = np.random.default_rng(3)
    for _ in range(50):
        matrix, target = rng.normal(size=(12, 4)), rng.normal(size=12)
        found = nonnegative(matrix, target)
        slope = matrix.T @ (target - matrix @ found)
        # The conditions of Karush, Kuhn and Tucker: no constant below zero, none that would help by growing.
        assert (found >= 0).all() and (slope <= 1e-6).all() and np.abs(slope[found > 0]).max(initial=0.0) < 1e-6


def test_runs_without_answers_teach_nothing():
    with pytest.raises(ValueError, match="has no complete answer"):
        fit(
            [CalibrationRun(LoadRun(label="", target="", started=0, duration=0, plan={}, records=[]), SHAPE)],
            cost(TRUE),
        )
