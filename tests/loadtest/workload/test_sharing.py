"""What requests share: no less than any cache of a server finds, and nothing where nothing is shared."""

from pathlib import Path

import pytest

from loadtest.simulate.content import Content
from loadtest.workload.arrivals import Poisson
from loadtest.workload.plan import LoadShape, Planned, make_plan
from loadtest.workload.sharing import Shared
from loadtest.workload.traces.read import read_trace
from scheduler.kv.block_pool import BlockPool
from scheduler.types.block_hash import block_names, root_hash

DATA = Path(__file__).parents[1] / "data"


def planned(index: int, length: int, **more: object) -> Planned:
    return Planned(index=index, intended=0.0, prompt_tokens=length, output_tokens=1, **more)  # type: ignore[arg-type]


def shared(*requests: Planned, base: int = 3) -> list[int]:
    known = Shared(base)
    return [known.tokens(each, each.prompt_tokens) for each in requests]


def test_prompts_of_their_own_share_how_they_begin():
    assert shared(planned(0, 10), planned(1, 20), planned(2, 2)) == [0, 3, 2]


def test_a_session_shares_as_much_as_its_longest_prompt_had():
    found = shared(
        *(
            planned(i, length, session=name)
            for i, (length, name) in enumerate([(10, "a"), (9, "b"), (30, "a"), (20, "a")])
        )
    )
    assert found == [0, 3, 10, 20]


def test_blocks_are_shared_only_behind_equal_ones():
    rows = [(1, 2, 3), (1, 2, 4), (9, 2, 3), (1, 2, 4, 5)]
    requests = [planned(i, 10 * len(row) - 2, blocks=row, block_tokens=10) for i, row in enumerate(rows)]
    assert shared(*requests) == [0, 20, 3, 30]


def test_texts_share_what_they_begin_with():
    texts = ["abcdefgh", "abcdxxxx", "abcdefgh", "zzzz"]
    assert shared(*(planned(i, 8, prompt=text) for i, text in enumerate(texts)), base=0) == [0, 4, 8, 0]


@pytest.mark.parametrize("name", ["mooncake.jsonl", "burstgpt_3.csv", "mt_bench.jsonl"])
def test_a_cache_that_keeps_everything_finds_no_more(name):
    trace = read_trace(DATA / name)
    requests = make_plan(trace, LoadShape(arrivals=None if trace.timed else Poisson())).requests
    pool, content, known, root = BlockPool(50_000, 16), Content(16), Shared(0), root_hash("x")
    found = possible = 0
    for request in requests:
        ids = content.text(request).prompt
        names = block_names(root, ids, 16)
        hits = pool.match(names, ids)
        found += 16 * len(hits)
        possible += known.tokens(request, len(ids))
        pool.share(hits)
        table = hits + pool.allocate(len(names) - len(hits), hits[-1] if hits else None)
        for place in range(len(hits), len(names)):
            pool.publish(
                table[place], names[place], ids[16 * place : 16 * place + 16], names[place - 1] if place else None
            )
        pool.release(table)
    assert found <= possible
    if name != "mt_bench.jsonl":  # whose turns the simulator takes for different texts
        assert found > 0.8 * possible > 0
