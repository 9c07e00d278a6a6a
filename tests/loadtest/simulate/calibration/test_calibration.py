"""The committed constants against runs that were recorded on two CPU cores with the embedded model."""

from pathlib import Path

import pytest

from loadtest.report.run_file import read_run
from loadtest.simulate.calibration.cli import errors_of
from loadtest.simulate.calibration.fit import CalibrationRun, fit
from loadtest.simulate.cluster import ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.specs import Costs, load_hardware, load_model

DATA = Path(__file__).parents[2] / "data" / "calibration"
SHAPE = ServerShape(max_step_tokens=128, max_running=64, kv_blocks=3000)  # as the server was started


def measured(kind: str) -> list[CalibrationRun]:
    return [CalibrationRun(read_run(path), SHAPE) for path in sorted((DATA / kind).glob("*.json"))]


def cost(costs: Costs | None = None) -> CostModel:
    hardware = load_hardware("cpu-2core")
    return CostModel(hardware.with_costs(costs) if costs else hardware, load_model("smollm2-135m"))


@pytest.mark.parametrize("kind", ["learned", "held_out"])
def test_predictions_are_as_close_as_they_are_meant_to_be(kind):
    for each in measured(kind):
        far = [error for error in errors_of(each, cost()) if not error.within]
        assert not far, each.run.label


def test_the_recorded_runs_are_whole():
    assert len(measured("learned")) >= 2 and measured("held_out")
    for each in measured("learned") + measured("held_out"):
        assert not each.run.invalid and all(record.ok for record in each.run.records)


def test_fitting_the_recorded_runs_from_a_bad_guess_predicts_them_as_well():
    guess = Costs(step=0.02, token=0, sequence=0, matrices=2, attention=1, request=0, delivery=cost().costs.delivery)
    fitted = cost(fit(measured("learned"), cost(guess)))
    assert all(error.within for each in measured("learned") for error in errors_of(each, fitted))
