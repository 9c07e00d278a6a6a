"""The benchmark of the simulator plays a real trace, and its digest tells one run from another."""

import pytest

from loadtest.bench.simulator import digest, main, play
from loadtest.report.records import RequestRecord
from loadtest.report.token_times import TokenTimes
from loadtest.simulate.cluster import ServerShape
from loadtest.workload.plan import Plan, Planned


def plan(output: int = 9) -> Plan:
    return Plan(
        requests=[
            Planned(index=index, intended=0.01 * index, prompt_tokens=100, output_tokens=output) for index in range(6)
        ]
    )


def test_the_digest_is_that_of_the_decisions():
    played = play(plan(), ServerShape(), rounds=2)
    assert played.refused == 0 and played.steps > 9 and played.rate > 0
    assert play(plan(), ServerShape()).digest == played.digest != play(plan(10), ServerShape()).digest
    assert play(plan(), ServerShape(max_waiting=1, max_running=1)).refused > 0


def test_a_token_that_comes_later_changes_it():
    records = [
        RequestRecord(index=0, intended=0.0, asked_prompt=1, asked_output=2, tokens=TokenTimes(times))
        for times in ([1.0, 2.0], [1.0, 2.0], [1.0, 2.5])
    ]
    one, same, other = (digest([record]) for record in records)
    assert one == same != other


def test_it_prints_a_line_for_each_setting(tmp_path, capsys):
    trace = tmp_path / "azure.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,4\r\n")
    assert main([str(trace)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 requests") and len(lines) == 5
    assert all("requests/s" in line and "digest" in line for line in lines[1:4]) and lines[4].endswith("MiB")


def test_a_trace_that_is_not_there_is_said(capsys):
    assert main(["nowhere.csv"]) == 2
    assert "nowhere.csv" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [1, 3])
def test_a_limit_is_kept_to(tmp_path, capsys, limit):
    trace = tmp_path / "azure.csv"
    rows = "".join(f"2023-11-16 18:15:4{second}.0,50,3\r\n" for second in range(6))
    trace.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\r\n{rows}")
    assert main([str(trace), "--limit", str(limit)]) == 0
    assert capsys.readouterr().out.startswith(f"{limit} requests")
