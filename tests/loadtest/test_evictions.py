"""Hit rates over the first rows of public traces, and over small ones whose rates are known."""

from itertools import combinations
from pathlib import Path

import pytest

from loadtest.evictions import blocks_asked, hit_rate, main, measure, optimum, pool_of
from loadtest.workload.traces.read import read_trace

DATA = Path(__file__).parent / "data"
MOONCAKE = str(DATA / "mooncake.jsonl")


def test_a_table_of_a_trace_with_blocks(capsys):
    assert main([MOONCAKE, "--sizes", "20,100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    asked = blocks_asked(read_trace(MOONCAKE).requests, 32)
    assert lines[0].startswith(f"30 requests ask for {sum(map(len, asked))} full blocks")
    assert [line.split("|")[1].strip() for line in lines[2:-2]] == ["cache, % of these", "---", "20", "100"]
    assert lines[-1] == f"Raised to {max(map(len, asked))} blocks, those of the longest prompt, which has to fit: 20 %."
    whole = [cell.strip() for cell in lines[-3].split("|")[3:-1]]
    assert whole[0] == whole[1] == whole[2] != "0.0 %" and whole[3] == "1.000", "all are equal where everything fits"


def test_sessions_extend_their_own_prompts(capsys):
    assert main([str(DATA / "burstgpt_3.csv"), "--sizes", "100", "--rows", "0:20"]) == 0
    assert "| 100 |" in capsys.readouterr().out


def test_a_trace_that_tells_nothing_of_sharing_is_refused(capsys):
    assert main([str(DATA / "azure_conv.csv")]) == 2
    assert "neither blocks nor sessions" in capsys.readouterr().err


def test_no_policy_beats_the_optimum_and_none_finds_what_was_never_there():
    asked = blocks_asked(read_trace(MOONCAKE).requests, 32)
    seen, possible = set(), 0
    for blocks in asked:
        possible += sum(block in seen for block in blocks)
        seen.update(blocks)
    for percent in (15, 30, 60, 100):
        row = measure(asked, percent)
        assert all(rate <= row.optimum + 1e-9 for rate in row.rates.values())
        assert row.optimum <= possible / sum(map(len, asked)) + 1e-9


@pytest.mark.parametrize(
    "asked",
    [
        [[1, 2], [3, 4], [1, 2], [5, 6], [3, 4], [1, 2]],
        [[1], [2], [3], [1], [2], [3], [4], [1], [2]],
        [[1, 2, 3], [1, 4], [5], [1, 2, 3], [1, 4], [5, 6]],
    ],
)
def test_the_optimum_is_what_trying_everything_finds(asked):
    capacity = 4
    states = {frozenset(): 0}  # what is kept: the most hits so far
    for blocks in asked:
        after: dict[frozenset[int], int] = {}
        for kept, hits in states.items():
            found = next((place for place, block in enumerate(blocks) if block not in kept), len(blocks))
            others = sorted(kept - set(blocks))
            for count in range(min(len(others), capacity - len(blocks)) + 1):
                for stay in combinations(others, count):
                    state = frozenset(stay) | set(blocks)
                    after[state] = max(after.get(state, 0), hits + found)
        states = after
    assert optimum(asked, capacity) == pytest.approx(max(states.values()) / sum(map(len, asked)))


def test_the_pool_is_the_schedulers_and_least_recently_used_is_what_it_says():
    asked = [[1, 2], [3, 4], [1, 2], [5, 6], [3, 4], [1, 2]]
    assert hit_rate(asked, pool_of("lru", 4)) == pytest.approx(2 / 12)
    assert hit_rate(asked, pool_of("lru", 6)) == pytest.approx(6 / 12)
