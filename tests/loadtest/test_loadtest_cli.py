"""The command line of the load tester: what it accepts, what it refuses, and the trace it makes of an access log."""

import subprocess
import sys
from pathlib import Path

import pytest

from loadtest import cli
from loadtest.client.scrape import parse_metrics
from loadtest.options import plan_of, replay_parser, target_of
from loadtest.report.records import Objective
from loadtest.report.run_file import read_run
from loadtest.workload import record
from loadtest.workload.arrivals import Gamma
from loadtest.workload.traces.read import read_trace

pytestmark = pytest.mark.processes

DATA = Path(__file__).parent / "data"
STUB = Path(__file__).parent / "stub_server.py"
BURSTGPT = str(DATA / "burstgpt_1.csv")
LOG = """\
2026-11-21 08:00:01,000 INFO headrace.server: ready
2026-11-21 08:00:03,500 INFO headrace.access: id=a client=1 method=POST path=/v1/completions status=200 ms=1500.0 \
sequences=1 prompt_tokens=12 cached_tokens=0 completion_tokens=5 preemptions=0 reason=length
2026-11-21 08:00:03,600 INFO headrace.access: id=b client=1 method=POST path=/v1/chat/completions status=200 ms=2600.0 \
sequences=2 prompt_tokens=40 cached_tokens=0 completion_tokens=8 preemptions=0 reason=stop
2026-11-21 08:00:04,000 INFO headrace.access: id=c client=1 method=GET path=/metrics status=200 ms=1.0
2026-11-21 08:00:04,000 INFO headrace.access: id=d client=1 method=POST path=/v1/completions status=429 ms=1.0 error=full
"""


def test_options_become_a_plan_and_a_target():
    arguments = [BURSTGPT, "--target", "http://h/v1", "--window", "1m:2h", "--arrivals", "gamma:rate=2,cv=3"]
    arguments += ["--slo", "ttft=500ms,tpot=50ms", "--max-lateness", "5", "--extra", '{"top_k": 1}', "--seed", "7"]
    options = replay_parser().parse_args(arguments)
    plan, target = plan_of(options), target_of(options)
    assert plan.shape.window == (60, 7200)
    assert (plan.shape.arrivals, plan.shape.seed, plan.max_lateness) == (Gamma(2, 3), 7, 0.005)
    assert plan.objectives == {"default": Objective(ttft=0.5, tpot=0.05)}
    assert (target.root, target.url, target.extra) == ("http://h", "http://h/v1/completions", {"top_k": 1})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.csv"], "no such file"),
        ([BURSTGPT, "--speed", "2", "--rate", "3"], "one of --speed, --duration and --rate"),
        ([BURSTGPT, "--arrivals", "closed:users=2", "--max-concurrency", "3"], "--max-concurrency bounds an open loop"),
        ([BURSTGPT], "cannot be reached"),
    ],
)
def test_what_cannot_be_run_is_one_sentence_and_exit_code_two(arguments, said, capsys):
    assert cli.main(["replay", *arguments, "--target", "http://127.0.0.1:9/v1"]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and not printed.out


@pytest.mark.parametrize("window", ["5", "9:5", "a:b", "5:5"])
def test_windows_that_are_none_are_refused(window, capsys):
    with pytest.raises(SystemExit):
        replay_parser().parse_args([BURSTGPT, "--target", "x", "--window", window])
    assert "window" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_subcommand_is_there(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == 0
    assert f"headrace loadtest {name}" in capsys.readouterr().out


def test_a_replay_writes_its_report(tmp_path, capsys):
    process = subprocess.Popen([sys.executable, STUB], stdout=subprocess.PIPE, text=True)
    try:
        target = f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        arguments = ["--target", target, "--arrivals", "poisson:rate=100", "--max-prompt", "50", "--max-output", "5"]
        code = cli.main(["replay", BURSTGPT, *arguments, "--max-lateness", "60000", "--output", str(tmp_path)])
    finally:
        process.terminate()
        process.communicate(timeout=10)
    assert code == 0
    assert len(read_run(tmp_path / "run.json").records) == 29
    assert "<html" in (tmp_path / "report.html").read_text()
    assert "answered in full" in capsys.readouterr().out


@pytest.fixture
def stub():
    """The URL of a stub that refuses every second request."""
    process = subprocess.Popen(
        [sys.executable, STUB, "--fault", "refuse", "--every", "2"], stdout=subprocess.PIPE, text=True
    )
    yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    process.terminate()
    process.communicate(timeout=10)


def test_the_exit_status_says_when_too_many_requests_failed(stub, capsys):
    flags = [
        "--target",
        stub,
        "--arrivals",
        "poisson:rate=200",
        "--limit",
        "8",
        "--max-prompt",
        "20",
        "--max-output",
        "2",
    ]
    command = ["replay", BURSTGPT, *flags, "--max-lateness", "60000", "--quiet"]
    assert [cli.main([*command, *more]) for more in ([], ["--max-failed", "40%"], ["--max-failed", "0.5"])] == [1, 1, 0]


def test_an_output_that_cannot_be_is_refused_before_anything_is_sent(tmp_path, capsys):
    nobody = ["replay", BURSTGPT, "--target", "http://127.0.0.1:9/v1"]
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        assert cli.main([*nobody, "--output", str(wrong)]) == 2
        assert f"--output {wrong}: nothing can be written there" in capsys.readouterr().err
    (tmp_path / "run.json").write_text("an earlier run")
    assert cli.main([*nobody, "--output", str(tmp_path)]) == 2
    assert "has a run.json already" in capsys.readouterr().err
    assert cli.main([*nobody, "--output", str(tmp_path), "--overwrite"]) == 2
    assert "cannot be reached" in capsys.readouterr().err
    assert (tmp_path / "run.json").read_text() == "an earlier run", "nothing ran that could take its place"


@pytest.mark.parametrize(
    "wrong",
    [
        "--max-lateness -1",
        "--patience 0",
        "--stall x",
        "--limit 0",
        "--rate 0",
        "--verify -1",
        "--max-failed 2",
        "--arrivals x",
    ],
)
def test_a_number_that_makes_no_sense_is_refused_by_its_option(wrong, capsys):
    with pytest.raises(SystemExit):
        replay_parser().parse_args([BURSTGPT, "--target", "x", *wrong.split()])
    assert f"argument {wrong.split()[0]}" in capsys.readouterr().err


def test_a_trace_is_made_of_an_access_log(tmp_path, capsys):
    log, trace = tmp_path / "log", tmp_path / "trace.jsonl"
    log.write_text(LOG)
    assert record.main([str(log), "--output", str(trace)]) == 0
    first, second = read_trace(trace, strict=True).requests
    assert (first.arrival, first.prompt_tokens, first.output_tokens, first.klass) == (0, 20, 4, "chat")
    assert (second.arrival, second.prompt_tokens, second.output_tokens, second.klass) == (1, 12, 5, "completions")
    for nowhere in (tmp_path, tmp_path / "absent" / "trace", log / "below"):
        assert record.main([str(log), "--output", str(nowhere)]) == 2
        assert f"--output {nowhere}" in capsys.readouterr().err
    log.write_text("nothing\n")
    assert record.main([str(log), "--output", str(trace)]) == 2
    assert "no line of an answered request" in capsys.readouterr().err


def test_metrics_are_numbers_by_name_and_labels():
    text = '# TYPE a counter\na_total{x="1 2"} 3\nb 1.5e3 1790000000\nc_bucket{le="1"} 4\nd NaN\nnot a sample at all\n'
    assert parse_metrics(text) == {'a_total{x="1 2"}': 3, "b": 1500}
