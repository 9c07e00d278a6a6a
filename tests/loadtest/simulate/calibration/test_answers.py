"""How often answers repeat themselves is found again from runs in which it was drawn."""

from dataclasses import replace

import numpy as np
import pytest

from loadtest.report.records import LoadRun
from loadtest.simulate.calibration.answers import RightGuesses, counted, moved, right_guesses
from loadtest.simulate.calibration.cli import DRAWS, errors_of
from loadtest.simulate.calibration.fit import CalibrationRun, fit, predict, requests_of
from loadtest.simulate.cluster import Cluster
from loadtest.simulate.cost import CostModel
from loadtest.simulate.specs import load_costs, write_costs
from scheduler.router.round_robin import RoundRobin
from tests.loadtest.simulate.calibration.test_fit import SHAPE, TRUE, cost, made

REPEATING = replace(TRUE, repeat_begins=0.06, repeat_ends=0.03)
ACCEPTED = "headrace_speculation_accepted_tokens_total"


def guessed(seed: int, rate: float, *, told: bool = True) -> CalibrationRun:
    """A run of answers that repeat themselves; the server tells of its guesses, if `told`."""
    cluster = Cluster(cost(REPEATING), SHAPE, RoundRobin())
    requests = [
        replace(each, session=None, output_tokens=2 * each.output_tokens) for each in requests_of(made(seed, rate).run)
    ]
    run = LoadRun(label=str(seed), target="", started=0.0, duration=1.0, plan={}, records=cluster.run(requests))
    (stats,) = cluster.stats()
    if told:
        run.scraped = {"before": {ACCEPTED: 7.0}, "after": {ACCEPTED: 7.0 + stats.drafts_accepted}}
    return CalibrationRun(run, SHAPE)


def test_constants_and_chances_are_found_again():
    start = replace(TRUE, step=0.01, token=0.0, sequence=0.0, matrices=1.0, attention=1.0, request=0.0)
    found = fit([guessed(1, 1.0)], cost(start))
    assert found.repeat_begins == pytest.approx(REPEATING.repeat_begins, rel=0.4)
    assert found.repeat_ends == pytest.approx(REPEATING.repeat_ends, rel=0.6)
    held_out = guessed(9, 1.0)
    assert all(abs(error.relative) < 0.2 for error in errors_of(held_out, cost(found))), (
        "of one draw, by the mean of several"
    )
    plain = cost(replace(found, repeat_begins=0.0))
    assert abs(ratio(held_out, cost(found))) < 0.1 < abs(ratio(held_out, plain)), "what guesses bring is not little"


def ratio(measured: CalibrationRun, model: CostModel) -> float:
    """How far the sum of all times per token is off."""
    simulated = sum(record.tpot or 0.0 for record in predict(measured, model))
    return simulated / sum(record.tpot or 0.0 for record in measured.run.records) - 1


def test_a_server_that_tells_of_no_guesses_has_none():
    found = guessed(1, 0.5, told=False)
    assert counted(found.run.records).tokens > 0 and right_guesses(found.run) == RightGuesses()
    assert fit([found], cost(REPEATING)).repeat_begins == 0.0


def test_chances_move_towards_what_was_real():
    real = RightGuesses(events=100, tokens=800)
    assert moved(TRUE, real, RightGuesses()).repeat_begins > 0
    rare = moved(REPEATING, real, RightGuesses(events=50, tokens=400))
    assert rare.repeat_begins > REPEATING.repeat_begins and rare.repeat_ends == pytest.approx(REPEATING.repeat_ends)
    short = moved(REPEATING, real, RightGuesses(events=100, tokens=300))
    assert short.repeat_ends < REPEATING.repeat_ends and short.repeat_begins == pytest.approx(REPEATING.repeat_begins)
    assert 0 < moved(REPEATING, real, RightGuesses()).repeat_begins <= 1
    assert moved(REPEATING, RightGuesses(), real).repeat_begins == 0.0
    assert real.near(RightGuesses(events=101, tokens=790)) and not real.near(RightGuesses(events=50, tokens=800))


def test_chances_are_kept_beside_the_constants(tmp_path):
    path = tmp_path / "costs.yaml"
    write_costs(REPEATING, path, "of a test")
    assert load_costs(path) == REPEATING
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "repeat" not in line))
    assert load_costs(path) == TRUE


def test_what_is_drawn_is_predicted_by_the_mean_of_several_draws():
    measured = guessed(3, 2.0)
    levels = [
        np.percentile([record.ttft for record in predict(measured, cost(REPEATING), seed)], 99) for seed in range(DRAWS)
    ]
    predicted = {(error.figure, error.level): error.predicted for error in errors_of(measured, cost(REPEATING))}
    assert len(set(levels)) > 1 and predicted["ttft", "p99"] == pytest.approx(np.mean(levels))
