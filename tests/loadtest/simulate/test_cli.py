import json

import pytest

from loadtest.report.records import LoadRun
from loadtest.simulate import calibrate, cli
from loadtest.simulate.specs import load_costs

SERVER = ["--hardware", "cpu-2core", "--model", "smollm2-135m", "--kv-blocks", "2000"]


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "azure.csv"
    rows = [f"2023-11-16 18:15:{40 + index}.6805900,{200 + 40 * index},{10 + index}" for index in range(12)]
    path.write_text("\r\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    return path


def test_a_simulated_run_is_kept_as_a_measured_one(trace, tmp_path, capsys):
    folder = tmp_path / "out"
    arguments = [str(trace), *SERVER, "--speed", "2", "--replicas", "2", "--slo", "ttft=30s", "--output", str(folder)]
    assert cli.main(arguments) == 0
    run = LoadRun.read(folder / "run.json")
    assert run.target == "simulation" and len(run.records) == 12 and all(record.ok for record in run.records)
    assert [record.intended for record in run.records] == pytest.approx([index / 2 for index in range(12)])
    assert run.duration == pytest.approx(max(record.finished for record in run.records))
    assert run.plan["replicas"] == 2 and run.plan["server"]["kv_blocks"] == 2000 and run.plan["speed"] == 2
    assert run.objectives["default"].ttft == 30
    assert run.scraped["after"]["headrace_generation_tokens_total"] == sum(10 + index for index in range(12))
    assert (folder / "report.html").stat().st_size > 10_000
    assert "requests/s" in capsys.readouterr().err


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
        (["--devices", "2"], "no link"),
    ],
)
def test_what_cannot_be_simulated_is_refused(trace, more, says, capsys):
    assert cli.main([str(trace), *SERVER, *more]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--slo", "ttft"], ["--window", "5"], ["--max-step-tokens", "0"], ["--arrivals", "x"]]
)
def test_a_flag_that_says_nothing_stops(trace, flags, capsys):
    with pytest.raises(SystemExit):
        cli.main([str(trace), *SERVER, *flags])
    assert flags[0] in capsys.readouterr().err


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


def test_a_missing_run_is_said(capsys):
    assert calibrate.main(["absent.json", *SERVER]) == 2
    assert "absent.json" in capsys.readouterr().err
