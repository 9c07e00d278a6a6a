"""Weighted percentiles against numpy; differences that are there, and that are not."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from loadtest.report.bootstrap import ComparedRun, Sample, block_weights, request_block
from loadtest.report.columns import Columns
from loadtest.report.compare import Side, Verdict, cautions, compare, main, same_requests, section
from loadtest.report.metrics import summarize
from loadtest.report.records import Objective
from loadtest.report.run_file import write_run
from loadtest.report.table import section_table

WEIGHTED = st.lists(st.tuples(st.floats(-100, 100), st.integers(0, 4)), min_size=1, max_size=30)


@settings(deadline=None)
@given(WEIGHTED, st.floats(0, 100))
def test_a_percentile_under_weights_is_numpys_of_the_repeated_values(pairs, percent):
    values, weights = np.array([value for value, _ in pairs]), np.array([weight for _, weight in pairs])
    found = Sample(values, np.arange(values.size)).percentile(percent, weights)
    if weights.sum() == 0:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(np.percentile(np.repeat(values, weights), percent), abs=1e-9)


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 99))
def test_a_resample_is_as_large_as_the_run(size, block, seed):
    weights = block_weights(np.random.default_rng(seed), size, block)
    assert weights.shape == (size,) and weights.sum() == size


def test_neighbours_are_drawn_together():
    rng = np.random.default_rng(0)
    alone, together = (
        np.mean([np.corrcoef(w[:-1], w[1:])[0, 1] for w in (block_weights(rng, 500, block) for _ in range(50))])
        for block in (1, 20)
    )
    assert abs(alone) < 0.05
    assert together > 0.85  # 1 - 1 / 20, less what chance takes


def test_blocks_are_as_long_as_what_was_in_flight_together(make):
    lonely = make.run_of([make.answered(i, float(i), ttft=0.5) for i in range(1000)])
    crowded = make.run_of([make.answered(i, float(i), ttft=49.5) for i in range(1000)])
    assert request_block(Columns.of(lonely)) == 10
    assert request_block(Columns.of(crowded)) == 50


def test_figures_are_the_reports(make):
    run = make.drawn_run(5)
    measured, summary = ComparedRun(run), summarize(run)
    figures = {figure.name: figure.under(measured.whole()) for figure in measured.figures}
    for title, name in (("TTFT", "ttft"), ("TPOT", "tpot"), ("ITL", "itl"), ("server queue", "queue")):
        assert figures[f"{title} p99 (ms)"] == pytest.approx(1000 * summary.latencies[name]["all"].p99)
    assert figures["attainment"] == pytest.approx(summary.attainment)
    assert figures["failed"] == pytest.approx(10 / 400)
    assert figures["cached share"] == pytest.approx(summary.cached_share)
    assert figures["requests/s"] == pytest.approx(summary.request_rate)
    assert figures["output tokens/s"] == pytest.approx(summary.output_rate)
    assert figures["goodput (requests/s)"] == pytest.approx(summary.goodput[-1].rate)


def verdicts(first: Side, second: Side, **more) -> dict[str, Verdict]:
    return {each.name: each.verdict for each in compare(first, second, resamples=300, **more)}


def test_runs_of_one_kind_differ_by_noise_only(make):
    found = [
        verdict
        for seed in range(5)
        for verdict in verdicts(Side.of([make.drawn_run(seed)]), Side.of([make.drawn_run(seed + 100)])).values()
    ]
    assert len(found) == 5 * 21
    real = [verdict for verdict in found if verdict in (Verdict.BETTER, Verdict.WORSE)]
    assert len(real) <= 3  # 1 in 100 at a confidence of 99 %


def test_a_slower_server_is_found_and_a_faster_one_praised(make):
    fast, slow = Side.of([make.drawn_run(1)]), Side.of([make.drawn_run(1, slow=1.2)])
    there, back = verdicts(fast, slow), verdicts(slow, fast)
    for name in ("TTFT p50 (ms)", "TPOT p90 (ms)", "ITL p99 (ms)", "e2e p50 (ms)", "attainment"):
        assert (there[name], back[name]) == (Verdict.WORSE, Verdict.BETTER)
    assert there["failed"] == there["cached share"] == Verdict.SAME


def test_asking_the_same_requests_sharpens_the_comparison(make):
    first, slow = make.drawn_run(1), make.drawn_run(1, slow=1.05)
    stranger = replace(slow, records=[replace(record, asked_prompt=11) for record in slow.records])
    paired, unpaired = (
        next(each for each in compare(Side.of([first]), Side.of([run]), resamples=300) if each.name == "TTFT p50 (ms)")
        for run in (slow, stranger)
    )
    assert paired.change == unpaired.change
    assert paired.high - paired.low < (unpaired.high - unpaired.low) / 2
    assert (paired.verdict, unpaired.verdict) == (Verdict.WORSE, Verdict.NOISE)


def test_runs_that_differ_among_themselves_make_a_difference_noise(make):
    """A side that is 1 to 1.4 times as slow from run to run says nothing against one that is 1.2 times as slow."""
    restless = Side.of([make.drawn_run(1), make.drawn_run(1, slow=1.4)])
    steady = Side.of([make.drawn_run(1, slow=1.15), make.drawn_run(1, slow=1.15)])
    assert verdicts(steady, Side.of([make.drawn_run(1), make.drawn_run(1)]))["TPOT p50 (ms)"] == Verdict.BETTER
    assert verdicts(steady, restless)["TPOT p50 (ms)"] == Verdict.NOISE


def test_a_tail_of_few_values_says_nothing(make):
    found = verdicts(Side.of([make.drawn_run(1, 100)]), Side.of([make.drawn_run(1, 100, slow=9)]))
    assert found["TTFT p99 (ms)"] == Verdict.FEW
    assert found["TTFT p50 (ms)"] == Verdict.WORSE


def test_what_one_side_does_not_tell_is_left_out(make):
    run = make.drawn_run(1)
    silent = replace(run, records=[replace(record, timings=None) for record in run.records], objectives={})
    names = {each.name for each in compare(Side.of([run]), Side.of([silent]), resamples=100)}
    assert not {"server queue p50 (ms)", "attainment"} & names and "TTFT p50 (ms)" in names


def test_equal_seeds_give_equal_intervals(make):
    sides = Side.of([make.drawn_run(1)]), Side.of([make.drawn_run(2)])
    assert compare(*sides, resamples=100, seed=3) == compare(*sides, resamples=100, seed=3)
    assert compare(*sides, resamples=100, seed=3) != compare(*sides, resamples=100, seed=4)


def test_cautions(make):
    run = make.drawn_run(1, label="A")
    other = make.drawn_run(2, label="B", invalid=["late"], objectives={"default": Objective(ttft=1.0)})
    text = "\n".join(cautions([Side.of([run]), Side.of([other], "B")]))
    for part in ("B: B is invalid: late", "did not send the same requests", "other objectives", "one run per side"):
        assert part in text
    assert cautions([Side.of([run, run]), Side.of([run, run])]) == []
    assert same_requests(Side.of([run]), Side.of([run])) and not same_requests(Side.of([run]), Side.of([run, run]))


def test_the_command(make, tmp_path, capsys):
    paths = []
    for name, slow in (("a1", 1), ("a2", 1), ("b1", 2), ("b2", 2)):
        paths.append(tmp_path / f"{name}.json")
        write_run(make.drawn_run(1, 120, slow, label=name[0]), paths[-1])
    a1, a2, b1, b2 = map(str, paths)
    page = tmp_path / "page.html"
    assert main([f"{a1},{a2}", f"{b1},{b2}", "--resamples", "100", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "B: b against A: a" in out and "worse" in out and "one run per side" not in out
    html = page.read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 6 and 'class="text worse"' in html


def test_sides_of_one_name_are_told_apart(make, tmp_path, capsys):
    path = tmp_path / "a.json"
    write_run(make.drawn_run(1, 60, label="same"), path)
    assert main([str(path), str(path), "--resamples", "100"]) == 0
    assert "B: same against A: same" in capsys.readouterr().out


def test_long_names_leave_the_figures_readable(make):
    sides = [Side.of([make.drawn_run(seed, 120, label="a server with a long name")], "AB"[seed]) for seed in (0, 1)]
    table = section(*sides, compare(*sides, resamples=100), 0.99)
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(section_table(table))
    text = capture.get()
    assert [cell for row in table.rows for cell in row[1:] if cell not in text] == []


def test_what_cannot_be_compared_is_said(make, tmp_path, capsys):
    path, empty = tmp_path / "a.json", tmp_path / "empty.json"
    write_run(make.drawn_run(1, 60), path)
    write_run(make.run_of([]), empty)
    assert main([str(path), str(tmp_path / "missing.json")]) == 2
    assert "missing.json" in capsys.readouterr().err
    assert main([str(path), str(empty)]) == 2
    assert "without requests" in capsys.readouterr().err
    for wrong in ([str(path)], [str(path), str(path), "--confidence", "1"], [str(path), str(path), "--resamples", "9"]):
        with pytest.raises(SystemExit):
            main(wrong)
