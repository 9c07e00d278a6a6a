"""A plan that nobody waits for says what it has: at any time, marked as such, and never more than was simulated."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from loadtest.sizing.answer import Buyer
from loadtest.sizing.candidates import FleetCandidates
from loadtest.sizing.fleet import FleetKind
from loadtest.sizing.page import render
from loadtest.sizing.pool import TrialPool
from loadtest.sizing.trial import FleetOutcome, SizingTrial
from loadtest.sizing.words import AnswerView, as_json, sections, sentences, without_answer
from tests.loadtest.sizing.test_plan import H200, HARD

pytestmark = pytest.mark.processes

LONG = ["--synthetic", "prompt=1000,output=60", "--limit", "60000", "--arrivals", "poisson:rate=60"]
SET = ["--model", "llama-3-8b", "--hardware", "h200", "--tensor-parallel", "1", "--gpu-kv", "auto", "--mixed-only"]
PLAN = [sys.executable, "-m", "loadtest.cli", "plan", *LONG, *SET, "--slo", "ttft=500ms,tpot=50ms", "--stretch", "300"]


NAMED = {"h200": "h200", "other": "other.yaml"}


class ImpatientPool(TrialPool):
    """Answers so many questions by what another pool has found, and is interrupted at the next one."""

    def __init__(self, patient: TrialPool, patience: int) -> None:
        super().__init__(patient.bench)
        self.patient, self.left = patient, patience

    def measure(self, trials: Sequence[SizingTrial]) -> list[FleetOutcome]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        found = self.patient.measure(trials)
        self._known.update(zip(trials, found, strict=True))
        return found


@contextmanager
def command(*more: str) -> Iterator["subprocess.Popen[str]"]:
    """The command that plans for minutes."""
    process = subprocess.Popen([*PLAN, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        for each in psutil.Process(process.pid).children() if process.poll() is None else []:
            each.kill()
        process.kill()
        process.communicate()


def buyer_with(pool: TrialPool) -> Buyer:
    kinds = [FleetKind(replace(H200, price_per_hour=4.0)), FleetKind(replace(H200, name="other", price_per_hour=3.0))]
    return Buyer(pool, FleetCandidates(HARD, [2048]), kinds, most=16, precision=2.0)


def test_whenever_it_is_interrupted_it_says_what_was_simulated_and_no_more():
    patient = TrialPool(HARD)
    whole = buyer_with(patient).answer()
    assert whole is not None and not whole.open
    stages: list[str] = []
    for patience in range(1000):
        pool = ImpatientPool(patient, patience)
        buyer = buyer_with(pool)
        try:
            assert buyer.answer() == buyer.so_far == whole
            break
        except KeyboardInterrupt:
            found = buyer.so_far
        if found is None:
            stages.append("")
            continue
        stages.append(found.open)
        assert found.best in pool.outcomes and pool.good(found.best)
        assert ("nothing was simulated over the whole load" in found.open) is not found.best.trial.whole
        view = AnswerView(found, HARD, pool.outcomes, NAMED, ["trace"])
        assert sentences(view)[0] == f"Interrupted: {found.open}. What is known by now:"
        assert sentences(view)[1].startswith(f"Enough is {found.best.trial.fleet}") and sections(view)
        content = json.loads(json.dumps(as_json(view)))
        assert content["open"] == found.open and (content["headroom"] is None) is (found.headroom is None)
        assert len(content["trials"]) == len(pool.outcomes)
    assert patience > 5 and len(set(stages)) == 4 and stages == sorted(stages, key=list(dict.fromkeys(stages)).index)
    last = "Interrupted</b>"
    assert last in render(view) and last not in render(AnswerView(whole, HARD, patient.outcomes, NAMED, []))


def test_without_a_set_it_says_which_kinds_were_tried():
    pool = ImpatientPool(TrialPool(HARD), 1)
    buyer = buyer_with(pool)
    with pytest.raises(KeyboardInterrupt):
        buyer.answer()
    assert buyer.so_far is None
    content = json.loads(json.dumps(without_answer(buyer.verdicts, pool.outcomes, "x")))
    assert (content["answer"], content["open"], len(content["trials"])) == (None, "x", len(pool.outcomes))


def test_a_process_that_has_ended_by_itself_is_no_fault(monkeypatch):
    """An interrupted pool tells its processes to go on without work, and one may be gone before it is ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    gone = psutil.Process(child.pid)
    child.wait()
    monkeypatch.setattr(psutil.Process, "children", lambda _self: [gone])
    with pytest.raises(KeyboardInterrupt), TrialPool(HARD, jobs=2):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("number", "jobs"), [pytest.param(signal.SIGINT, "1", marks=pytest.mark.long), (signal.SIGTERM, "2")]
)
def test_a_command_that_is_interrupted_reports_what_it_has(number, jobs, tmp_path):
    with command("--jobs", jobs, "--output", str(tmp_path)) as process:
        while "keeps the goal over the busiest stretch" not in (line := process.stderr.readline()):
            assert line, "it ended before there was anything to interrupt"
        process.send_signal(number)  # the whole load, which takes a minute, is still to come
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert said.startswith("Interrupted: ") and "Enough is" in said and "of the busiest 300 requests" in said
    assert "headrace loadtest simulate" in said and "headrace serve" in said and "Traceback" not in errors
    content = json.loads((tmp_path / "plan.json").read_text())
    assert "nothing was simulated over the whole load" in content["open"] and not content["answer"]["whole"]
    assert "Interrupted" in (tmp_path / "plan.html").read_text()


def test_a_command_that_is_interrupted_before_there_is_a_set_says_so():
    with command("--stretch", "60000", "--json", "--jobs", "2") as process:
        while not Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)  # while the others are being made, as often as not
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert json.loads(said)["answer"] is None and "has not ended" in json.loads(said)["open"]
