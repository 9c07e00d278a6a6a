"""The simulator beside recorded runs; what needs a server is for `python -m loadtest.bench.held_out` itself."""

import pytest

from loadtest.bench import held_out
from loadtest.bench.held_out import LOADS, SHAPE, HeldOutRuns, main, rows, sustained
from loadtest.report.run_file import write_run
from loadtest.simulate.calibration.cli import Error
from loadtest.workload.arrivals import Poisson, RateSteps
from loadtest.workload.plan import LoadShape, make_plan
from loadtest.workload.traces.read import read_trace
from tests.loadtest.simulate.calibration.test_fit import TRUE, cost, made

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n" + "".join(
    f"2023-11-16 {18 + minute // 60}:{minute % 60:02}:00.0,{90 + minute},{5 + minute}\r\n" for minute in range(60)
)


@pytest.fixture
def traces(tmp_path):
    for load in LOADS.values():
        (tmp_path / load.trace).write_text(AZURE)
    return tmp_path


def recorded(folder, *, blocks=True):
    """Simulated runs in place of all measured ones."""
    for number, name in enumerate(LOADS):
        run = made(number, 1.0 + number).run
        run.scraped["after"] |= {"headrace_kv_pool_blocks": 2000.0} if blocks else {}
        write_run(run, folder / f"{name}.json")


def test_rates_are_shares_of_what_is_sustained(traces):
    runs = HeldOutRuns(traces, traces, faster=2.0)
    plan = runs.plan("learned", 4.0)
    assert plan.shape.arrivals == RateSteps(tuple(4.0 * share for share in LOADS["learned"].shares), 15.0)
    held = HeldOutRuns(traces, traces).plan("overloaded", 3.0)
    assert held.shape.arrivals == Poisson(3.0 * LOADS["overloaded"].shares[0])
    assert make_plan(held.trace, held.shape).requests[-1].intended < LOADS["overloaded"].seconds


def test_what_is_sustained_grows_with_what_a_request_costs_less(traces):
    trace = read_trace(str(traces / LOADS["learned"].trace))
    short, long = (sustained(trace, LoadShape(max_output=most), cost(TRUE)) for most in (2, 60))
    assert short > 1.2 * long > 0


def test_recorded_runs_are_learned_from_and_compared(traces, capsys):
    recorded(traces)
    code = main(["--traces", str(traces), "--output", str(traces)])
    printed = capsys.readouterr().out
    assert code == 0 and "!" not in printed, "constants of the simulator predict what it made"
    assert printed.count("| ttft p50 |") == len(LOADS) and (traces / "costs.yaml").exists()


def test_a_run_that_is_far_off_is_marked_and_said(traces, capsys):
    recorded(traces)
    run = made(5, 1.0).run
    run.scraped["after"]["headrace_kv_pool_blocks"] = 2000.0
    for record in run.records:
        record.tokens = [(at + 3.0, count) for at, count in record.tokens]
        record.finished += 3.0
    write_run(run, traces / "moderate.json")
    arguments = ["--traces", str(traces), "--output", str(traces), "--only"]
    assert main([*arguments, "moderate"]) == 1
    assert "% ! |" in capsys.readouterr().out
    assert main([*arguments, "saturated"]) == 0


def test_what_cannot_be_said_is_said(traces, capsys):
    recorded(traces)
    run = made(0, 1.0).run
    run.invalid = ["the client was late"]
    write_run(run, traces / "learned.json")
    assert main(["--traces", str(traces), "--output", str(traces)]) == 2
    assert "the client was late" in capsys.readouterr().err
    (traces / "learned.json").unlink()
    assert main(["--traces", str(traces / "nowhere"), "--output", str(traces)]) == 2


def test_a_row_has_units_of_its_figure():
    measured = made(1, 1.0).run
    errors = [Error("ttft", "p50", 2.0, 1.0), Error("tpot", "p99", 0.01, 0.0101), Error("tok/s", "mean", 50.0, 51.0)]
    found = rows("x", measured, errors)
    assert found[2:] == [
        "| ttft p50 | 2 s | 1 s | -50.0% ! |",
        "| tpot p99 | 10 ms | 10.1 ms | +1.0% |",
        "| tok/s mean | 50 | 51 | +2.0% |",
    ]


def test_the_server_is_started_with_what_is_simulated():
    flags = dict(zip(held_out.FLAGS[::2], held_out.FLAGS[1::2], strict=True))
    assert flags == {"--max-step-tokens": str(SHAPE.max_step_tokens), "--max-running": str(SHAPE.max_running)}
