import json
import signal
from dataclasses import replace

import pytest

from loadtest.report.metrics import summarize
from loadtest.report.pages import plots
from loadtest.report.records import LoadRun
from loadtest.report.run_file import read_run, write_run
from loadtest.simulate import cli
from loadtest.simulate.calibration import cli as calibrate
from loadtest.simulate.content import Content
from loadtest.simulate.policy import PolicyOutcome
from loadtest.simulate.specs import load_costs

SERVER = ["--hardware", "cpu-2core", "--model", "smollm2-135m", "--kv-blocks", "2000"]


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "azure.csv"
    rows = [f"2023-11-16 18:15:{40 + index}.6805900,{200 + 40 * index},{10 + index}" for index in range(12)]
    path.write_text("\r\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    return path


@pytest.fixture
def no_pictures(monkeypatch):
    """They take a second, and other tests look at them."""
    monkeypatch.setattr(plots, "plots", lambda view: [])


def test_a_simulated_run_is_kept_as_a_measured_one(trace, tmp_path, capsys):
    folder = tmp_path / "out"
    arguments = [str(trace), *SERVER, "--speed", "2", "--replicas", "2", "--slo", "ttft=30s", "--output", str(folder)]
    assert cli.main(arguments) == 0
    run = read_run(folder / "run.json")
    assert run.target == "simulation" and len(run.records) == 12 and all(record.ok for record in run.records)
    assert [record.intended for record in run.records] == pytest.approx([index / 2 for index in range(12)])
    assert run.duration == pytest.approx(max(record.finished for record in run.records))
    assert run.plan["replicas"] == 2 and run.plan["server"]["kv_blocks"] == 2000 and run.plan["speed"] == 2
    assert run.objectives["default"].ttft == 30
    assert run.scraped["after"]["headrace_generation_tokens_total"] == sum(10 + index for index in range(12))
    assert (folder / "report.html").stat().st_size > 10_000
    assert "requests/s" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_several_budgets_make_a_table_and_smaller_ones_shorter_gaps(trace, tmp_path, capsys):
    arguments = [str(trace), *SERVER, "--speed", "20", "--max-step-tokens", "32,512", "--output", str(tmp_path)]
    assert cli.main(arguments) == 0
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head[0] == "max_step_tokens" and [row[0] for row in rows] == ["32", "512"]
    gap = [float(row[4]) for row in rows]
    assert gap[0] < gap[1]
    assert json.loads((tmp_path / "32" / "run.json").read_text())["plan"]["server"]["max_step_tokens"] == 32


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--window", "500:600"], "no request arrives"),
        (["--model", "llama-3-8b"], "computes in bf16"),
        (["--arrivals", "closed:users=2"], "not closed loops"),
        (["--devices", "3"], "no link"),
        (["--processes", "2"], "--processes is for replicas that take turns"),
        (["--processes", "2", "--replicas", "2"], "--router round-robin"),
        (["--hardware", "h200", "--model", "llama-3-8b", "--devices", "3"], "cannot be divided over --devices 3"),
        (["--context", "9000"], "--context 9000 is not possible: smollm2-135m takes 8192"),
        (["--context", "3"], "are more than the context of 3: no request fits"),
        (
            [
                "--context",
                "65000",
                "--hardware",
                "h200",
                "--model",
                "llama-3-70b",
                "--devices",
                "2",
                "--kv-blocks",
                "9",
            ],
            "hold 288",
        ),
    ],
)
def test_what_cannot_be_simulated_is_refused(trace, more, says, capsys):
    assert cli.main([str(trace), *SERVER, *more]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--slo", "ttft"],
        ["--slo", "tpot=50"],
        ["--window", "5"],
        ["--window", "x:9"],
        ["--max-step-tokens", "0"],
        ["--arrivals", "x"],
        ["--replicas", "0"],
        ["--processes", "0"],
        ["--devices", "0"],
        ["--limit", "0"],
        ["--speed", "-1"],
        ["--scale", "nan"],
        ["--block-size", "x"],
        ["--deadline", "first_token=-1"],
        ["--deadline", "end=nan"],
    ],
)
def test_a_flag_that_says_nothing_stops(trace, flags, capsys):
    with pytest.raises(SystemExit):
        cli.main([str(trace), *SERVER, *flags])
    assert flags[0] in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_windows_are_those_of_a_replay(trace, tmp_path):
    assert cli.main([str(trace), *SERVER, "--window", "0.05m:0.1m", "--output", str(tmp_path)]) == 0
    assert len(read_run(tmp_path / "run.json").records) == 3


@pytest.mark.usefixtures("no_pictures")
def test_what_is_longer_than_the_context_is_a_column_and_no_miss(trace, tmp_path, capsys, monkeypatch):
    rows = trace.read_text() + "\r\n2023-11-16 18:16:00.0,999999999,5"
    trace.write_text(rows)
    given, text = [], Content.text
    watched = lambda self, each, **how: given.append(each.prompt_tokens) or text(self, each, **how)  # noqa: E731
    monkeypatch.setattr(Content, "text", watched)
    flags = ["--context", "500", "--slo", "e2e=3600s", "--output", str(tmp_path)]
    assert cli.main([str(trace), *SERVER, *flags]) == 0
    assert max(given) < 500, "ids of a billion tokens would take 8 GB"
    run = read_run(tmp_path / "run.json")
    fits = [record.asked_prompt + record.asked_output <= 500 for record in run.records]
    assert [record.fits for record in run.records] == fits and fits.count(False) == 5
    summary = summarize(run)
    assert (summary.unfit, summary.failed, summary.attainment) == (5, 0, 1.0)
    assert "longer than the context" in capsys.readouterr().out
    assert "longer than the context" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert str(PolicyOutcome.of(1, summarize(run))).split()[-1] == "5"


def test_an_output_that_cannot_be_is_refused_before_anything_is_simulated(trace, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "simulate", lambda *_, **__: pytest.fail("it ran"))
    assert cli.main([str(trace), *SERVER, "--output", str(trace)]) == 2
    assert "it is no folder" in capsys.readouterr().err
    (tmp_path / "32").mkdir()
    (tmp_path / "32" / "run.json").write_text("an earlier run")
    assert cli.main([str(trace), *SERVER, "--output", str(tmp_path), "--max-step-tokens", "64,32"]) == 2
    assert "has a run.json already" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_simulation_that_is_interrupted_keeps_what_it_has(number, trace, tmp_path, monkeypatch, capsys):
    def progress(total):
        return lambda done: signal.raise_signal(number) if done == 5 else None

    monkeypatch.setattr(cli, "_progress", progress)
    before = signal.getsignal(number)
    assert cli.main([str(trace), *SERVER, "--output", str(tmp_path), "--max-step-tokens", "64,32"]) == 3
    assert signal.getsignal(number) is before and not (tmp_path / "32" / "run.json").exists()
    run = read_run(tmp_path / "64" / "run.json")
    assert run.invalid == ["interrupted after 5 of 12 requests"] and len(run.records) == 5
    assert any(record.ok for record in run.records) and not run.records[-1].ok
    assert "64" in capsys.readouterr().out


@pytest.mark.usefixtures("no_pictures")
def test_calibrate_fits_writes_and_judges(trace, tmp_path, capsys):
    folder, constants = tmp_path / "out", tmp_path / "costs.yaml"
    assert cli.main([str(trace), *SERVER, "--output", str(folder)]) == 0
    run, capsys_ = str(folder / "run.json"), capsys.readouterr()
    assert capsys_.out
    assert calibrate.main([run, *SERVER, "--check", run, "--write", str(constants)]) == 0
    printed = capsys.readouterr().out
    assert "(learned, 12 requests)" in printed and "(held out, 12 requests)" in printed and "more than" not in printed
    assert load_costs(constants).matrices > 0
    slower = constants.read_text().splitlines()
    constants.write_text("\n".join(line if "step:" not in line else "step: 1.0" for line in slower))
    assert calibrate.main([run, *SERVER, "--no-fit", "--costs", str(constants)]) == 1
    assert "more than 15%" in capsys.readouterr().out


def test_a_missing_run_is_said(tmp_path, capsys):
    assert calibrate.main(["absent.json", *SERVER]) == 2
    assert "absent.json" in capsys.readouterr().err
    (tmp_path / "none.json").write_text("{")
    assert calibrate.main([str(tmp_path / "none.json"), *SERVER]) == 2
    assert "none.json is not JSON" in capsys.readouterr().err
    run = tmp_path / "run.json"
    write_run(LoadRun(label="", target="", started=0.0, duration=0.0, plan={}, records=[]), run)
    assert calibrate.main([str(run), *SERVER, "--write", str(tmp_path)]) == 2
    assert "a file is expected, and it is a folder" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"invalid": ["interrupted after 3 of 9 requests"]}, "interrupted after 3 of 9"),
        ({"invalid": ["the client could not keep up: ..."]}, "could not keep up"),
        ({"plan": {"shareable": 0.01}, "cached": 0.95}, "95.0% of the prompts was found in the server's cache"),
        ({"records": []}, "no complete answer"),
    ],
)
def test_calibrate_learns_nothing_from_a_run_that_says_nothing_of_the_server(wrong, says, trace, tmp_path, capsys):
    assert cli.main([str(trace), *SERVER, "--output", str(tmp_path)]) == 0
    good, path = read_run(tmp_path / "run.json"), tmp_path / "bad.json"
    more = dict(wrong)
    if share := more.pop("cached", 0):
        more["records"] = [replace(record, cached_tokens=round(share * record.asked_prompt)) for record in good.records]
    write_run(replace(good, **more), path)
    capsys.readouterr()
    assert calibrate.main([str(path), *SERVER]) == 2
    said = capsys.readouterr().err
    assert f"{path} is left out: " in said and says in said and "none of these runs can be learned from" in said
    assert calibrate.main([str(tmp_path / "run.json"), str(path), *SERVER, "--check", str(path)]) == 0
    assert capsys.readouterr().err.count("is left out") == 2
