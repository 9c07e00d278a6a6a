"""Sweeps over a server that is a queue, replays and all but the network; and their page."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.replay import ReplayPlan
from loadtest.report.capacity import verdict
from loadtest.report.records import LoadRun, Objective
from loadtest.report.run_file import read_run
from loadtest.search import End, RateSearch, SearchResult
from loadtest.sweep import Sweep, _exit_code, main
from loadtest.workload.arrivals import Poisson
from loadtest.workload.plan import LoadShape, make_plan
from loadtest.workload.traces import Trace, TraceRequest

pytestmark = pytest.mark.processes

TRACE = Trace(
    name="made",
    format="headrace",
    requests=[TraceRequest(line=i, arrival=i * 2.0, prompt_tokens=10, output_tokens=2) for i in range(1, 400)],
)


class Queue:
    """Servers that serve one request at a time, each in the given seconds; keeps what they were asked."""

    def __init__(self, make, **seconds: float) -> None:
        self.make = make
        self.seconds = seconds
        self.plans: list[tuple[str, ReplayPlan]] = []

    def __call__(self, name: str, plan: ReplayPlan) -> LoadRun:
        self.plans.append((name, plan))
        free, records = 0.0, []
        for planned in make_plan(plan.trace, plan.shape).requests:
            free = max(free, planned.intended) + self.seconds[name]
            records.append(self.make.answered(planned.index, planned.intended, ttft=free - planned.intended))
        return self.make.run_of(records, objectives=plan.objectives, label=plan.label)


def sweep_of(replay, names="a", folder=None, **search) -> Sweep:
    return Sweep(
        searches={name: RateSearch(**{"start": 1.0} | search) for name in names},
        replay=replay,
        plan=ReplayPlan(trace=TRACE, shape=LoadShape(arrivals=Poisson()), objectives={"default": Objective(ttft=1.0)}),
        texts=7,
        folder=folder,
        say=lambda line: None,
    )


def test_the_faster_server_sustains_more(make):
    outcomes = sweep_of(Queue(make, a=0.1, b=0.05), "ab", start=4.0, precision=0.2).run()
    assert all(found.end is End.FOUND for found in outcomes.values())
    # A queue of one place sustains less than its service rate, and not much less.
    assert 6 < outcomes["a"].rate < 10
    assert 14 < outcomes["b"].rate < 20


def test_servers_are_asked_in_turn_the_same_requests_at_the_same_rate(make):
    queue = Queue(make, a=0.1, b=0.1)
    sweep_of(queue, "ab").run()
    assert [name for name, _ in queue.plans] == ["a", "b"] * (len(queue.plans) // 2)
    for (_, first), (_, second) in zip(queue.plans[::2], queue.plans[1::2], strict=True):
        assert first.shape == second.shape
    shapes = [plan.shape for name, plan in queue.plans if name == "a"]
    assert len({shape.seed for shape in shapes}) == len(shapes), "a run would find an earlier one's prompts cached"


def test_low_rates_take_longer_so_that_there_is_something_to_judge(make):
    sweep = sweep_of(Queue(make, a=0.1))
    assert sweep.planned(100.0, 0).shape.duration == 60
    assert sweep.planned(0.1, 0).shape.duration == 500


def test_the_traces_own_times_are_stretched_to_the_rate(make):
    sweep = sweep_of(Queue(make, a=0.1))
    sweep.plan = replace(sweep.plan, shape=LoadShape())
    plan = make_plan(TRACE, sweep.planned(4.0, 0).shape)
    assert len(plan.requests) == 240
    assert (len(plan.requests) - 1) / plan.requests[-1].intended == pytest.approx(4.0)


def test_an_invalid_run_is_the_clients_limit_and_not_the_servers(make):
    queue = Queue(make, a=0.001)

    def weak_client(name, plan):
        run = queue(name, plan)
        return replace(run, invalid=["the client could not keep up"]) if plan.shape.rate > 30 else run

    sweep = sweep_of(weak_client)
    (found,) = sweep.run().values()
    assert found.end is End.CLIENT and found.rate <= 30 < found.above and not found.end.told
    assert any("not counted" in note for note in sweep.notes)
    assert all(point.rate <= 30 for point in sweep.points)


def test_an_interrupted_run_ends_the_sweep(make):
    queue = Queue(make, a=0.1)
    sweep = sweep_of(lambda name, plan: replace(queue(name, plan), invalid=["interrupted after 3 of 50 requests"]))
    (found,) = sweep.run().values()
    assert len(queue.plans) == 1 and (found.end, found.rate) == (End.INTERRUPTED, None)
    assert "nothing is known" in verdict("a", found)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_runs_keeps_what_was_measured(number, make, tmp_path):
    queue, before = Queue(make, a=0.01), signal.getsignal(number)

    def stopped_at_four(name, plan):
        if plan.shape.rate == 4:
            signal.raise_signal(number)
        return queue(name, plan)

    sweep = sweep_of(stopped_at_four, folder=tmp_path)
    (found,) = sweep.run().values()
    assert (found.rate, found.above, found.end) == (2, None, End.INTERRUPTED) and signal.getsignal(number) is before
    assert "2.00 requests/s are sustained (the sweep was interrupted)" in verdict("a", found)
    kept = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))
    assert [trial["rate"] for trial in kept["servers"]["a"]["trials"]] == [1, 2], "written as it goes"


def test_near_the_edge_runs_are_longer_and_the_same_for_all_servers(make):
    queue = Queue(make, a=0.1, b=0.1)
    sweep = sweep_of(queue, "ab", start=7.0, precision=0.02)
    sweep.run()
    shapes = [plan.shape for name, plan in queue.plans if name == "a"]
    assert {shape.duration for shape in shapes} >= {60, 120}, "undecided after one run"
    assert [plan.shape for name, plan in queue.plans if name == "b"] == shapes
    assert len({plan.texts for name, plan in queue.plans if name == "a"}) == len(shapes)


def test_a_sweep_that_cannot_tell_says_so_by_its_status():
    sure = SearchResult(4.0, 5.0, End.FOUND, (4.0, 5.0))
    assert _exit_code([sure]) == 0
    assert _exit_code([sure, replace(sure, end=End.CLIENT)]) == 3
    assert _exit_code([sure, replace(sure, sure=(None, None))]) == 3
    assert _exit_code([replace(sure, rate=None, end=End.NONE), replace(sure, end=End.CLIENT)]) == 1
    assert _exit_code([sure, replace(sure, end=End.INTERRUPTED)]) == 130
    assert "At 95 % it is at least 4.00 and below 5.00" in verdict("a", sure)


def test_without_an_objective_that_judges_nothing_is_measured(make):
    sweep = sweep_of(Queue(make, a=0.1))
    sweep.plan = replace(sweep.plan, objectives={"other": Objective(ttft=1.0)})
    with pytest.raises(ValueError, match="--slo"):
        sweep.run()


def test_every_run_is_kept_and_the_page_shows_all(make, tmp_path):
    sweep = sweep_of(Queue(make, a=0.1, b=0.2), "ab", tmp_path, precision=0.3)
    outcomes = sweep.run()
    page, data = sweep.write(outcomes, tmp_path)
    runs = [read_run(path) for path in tmp_path.glob("?-*.json")]
    assert (
        len(runs)
        == len(sweep.points)
        == sum(len(trial.attainments) for s in sweep.searches.values() for trial in s.trials)
    )
    html = page.read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 2 and "requests/s are sustained" in html
    content = json.loads(data.read_text(encoding="utf-8"))
    assert content["schema"] == "headrace.sweep/1"
    assert content["servers"]["a"]["rate"] == outcomes["a"].rate
    assert len(content["runs"]) == len(runs)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--target", "http://127.0.0.1:9/v1"], "cannot be reached"),
        (["--target", "a=http://x/v1", "--target", "a=http://y/v1"], "two targets"),
        (["--target", "http://x/v1", "--repeats", "2"], "odd"),
        (["--target", "http://x/v1", "--rate", "5"], "a sweep decides --rate itself"),
        (["--target", "http://x/v1", "--speed", "5"], "a sweep decides --speed itself"),
        (["--target", "http://x/v1", "--slo", ""], "give --slo"),
    ],
)
def test_what_cannot_be_swept_is_said(tmp_path, capsys, more, said):
    trace = tmp_path / "trace.jsonl"
    rows = [{"format": "headrace.trace/1", "tick": 0}, {"at": 0, "prompt_tokens": 5, "output_tokens": 5}]
    trace.write_text("\n".join(map(json.dumps, rows)))
    assert main([str(trace), "--slo", "ttft=1s", *more]) == 2
    assert said in capsys.readouterr().err


@pytest.fixture
def stub():
    """A real server, in a process of its own."""
    path = Path(__file__).parents[1] / "stub_server.py"
    command = [sys.executable, str(path), "--ttft", "0.001", "--gap", "0.001"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        process.terminate()


def test_two_names_of_one_real_server_are_swept_in_turn(stub, tmp_path, capsys):
    rows = [{"at": i, "prompt_tokens": 20, "output_tokens": 3} for i in range(20)]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("\n".join(map(json.dumps, [{"format": "headrace.trace/1", "tick": 0}, *rows])))
    options = "--slo e2e=600s --goal 0.5 --start 100 --highest 100 --repeats 1 --seconds 0.1 --least 12 --max-lateness 6e5 --quiet"
    output = tmp_path / "out"
    targets = ["--target", f"x={stub}", "--target", f"y={stub}"]
    assert main([str(trace), *targets, *options.split(), "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert "x: 100.0 requests/s are sustained" in text and "y: 100.0 requests/s are sustained" in text
    names = sorted(path.name for path in output.iterdir())
    assert names == ["sweep.html", "sweep.json", "x-100-1.json", "y-100-1.json"]
    x, y = (read_run(output / f"{name}-100-1.json") for name in "xy")
    assert [record.intended for record in x.records] == [record.intended for record in y.records]
    assert all(record.ok and not record.violations for record in x.records + y.records)
