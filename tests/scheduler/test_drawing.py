"""What a scheduler draws for people who watch: blocks, their owners, requests, tiers, within bounds."""

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.kv.block_cells import draw_blocks
from scheduler.kv.block_pool import BlockPool
from scheduler.types import engine_map
from scheduler.types.engine_map import BlockState, EngineMap, MapRequest, MapStep, short_name
from tests.scheduler.drawn_map import cells_of, check_map
from tests.scheduler.sim import Engine

FREE, CACHED, USED, SAVING, LOADING = BlockState
PROMPT = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


def test_blocks_fill_are_shared_and_are_kept():
    engine = Engine(blocks=12, max_step_tokens=4)
    assert [cell[0] for cell in cells_of(engine.scheduler.draw_map(0.0).cells)] == [FREE] * 12
    engine.add("a", PROMPT, max_tokens=30, ignore_eos=True, tenant="shop")
    engine.tick()
    drawn = engine.scheduler.draw_map(engine.now)
    (row,) = drawn.requests
    assert (row.name, row.tenant, row.state, row.prompt, row.output) == ("a", "shop", "prefill", 10, 0)
    while not engine.outputs["a"]:
        engine.tick()
    engine.add("b", PROMPT, max_tokens=3, ignore_eos=True)
    assert engine.scheduler.draw_map(engine.now).requests[1].state == "waiting"
    while not engine.outputs["b"]:
        engine.tick()
    drawn = engine.scheduler.draw_map(engine.now)
    assert [(row.state, row.cached) for row in drawn.requests] == [("decode", 0), ("decode", 8)]
    cells = cells_of(drawn.cells)
    assert [cell[1] for cell in cells[:3]] == [(0, 1), (0, 1), (0,)], "two blocks of four tokens are shared"
    assert [cell[2] for cell in cells[:3]] == [0, 1, 2]
    engine.drain()
    drawn = engine.scheduler.draw_map(engine.now)
    kept = [cell for cell in cells_of(drawn.cells) if cell[0] == CACHED]
    assert not drawn.requests and len(kept) == drawn.cached == 9 and {cell[1] for cell in kept} == {()}


def test_what_moves_between_tiers_is_seen_on_its_way():
    engine = Engine(blocks=6, max_step_tokens=16, tiers={"host": 20}, decode_watermark=0.0)
    seen, ways = set(), set()

    def look(_=None):
        check_map(engine.scheduler)
        drawn = engine.scheduler.draw_map(engine.now)
        seen.update(cell[0] for cell in cells_of(drawn.cells))
        (tier,) = drawn.tiers
        assert (tier.name, tier.up, tier.capacity, tier.shared) == ("host", True, 20, False)
        assert tier.bytes <= tier.capacity
        ways.update(way for way in ("loading", "saving") if getattr(tier, way))
        states.update(row.state for row in drawn.requests)

    states = set()
    engine.after_step = engine.stalled = look
    for turn in range(3):
        for letter in range(3):
            engine.add(f"{letter} {turn}", [letter] * 8, max_tokens=14, ignore_eos=True)
        engine.drain()
    assert seen == {FREE, CACHED, USED, SAVING, LOADING} and ways == {"loading", "saving"}
    assert {"preempted", "loading"} <= states


@given(seed=st.integers(0, 10**6), blocks=st.integers(1, 60), most=st.integers(1, 70))
def test_squares_of_several_blocks_add_up(seed, blocks, most):
    rng, pool, tables = Random(seed), BlockPool(blocks, 4), []
    for number in range(rng.randint(0, 6)):
        if pool.available:
            table = pool.allocate(rng.randint(1, pool.available))
            for place, block in enumerate(table):
                if rng.random() < 0.5:
                    pool.publish(block, b"%d %d" % (number, place), [1, 2, 3, 4])
            tables.append(table)
    for table in tables[::2]:
        pool.release(table)
    tables = tables[1::2]
    drawn = draw_blocks(pool, tables, most_cells=most)
    cells, per_cell = cells_of(drawn), drawn.per_cell
    assert len(cells) == -(-blocks // per_cell) <= most
    whose = {block: (row, place) for row, table in enumerate(tables) for place, block in enumerate(table)}
    for number, (state, rows, place, active, cached) in enumerate(cells):
        inside = range(number * per_cell, min(blocks, (number + 1) * per_cell))
        used = [block for block in inside if block in whose]
        assert active == len(used) and cached == sum(not pool.in_use(b) and _has_content(pool, b) for b in inside)
        assert state == (USED if used else CACHED if cached else FREE)
        assert not used or ((rows, place) == ((whose[used[0]][0],), whose[used[0]][1]))


def _has_content(pool, block):
    return pool._keys[block] is not None


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("blocks", [engine_map.MOST_CELLS, 100_000])
def test_no_map_is_larger_than_promised(blocks, nested):
    """Every bound reached: no two squares alike, all rows, all steps. `nested`: each prompt goes on where the one before ends."""
    pool, rng = BlockPool(blocks, 32), Random(1)
    ids = rng.sample(pool.allocate(blocks), blocks)
    rows = engine_map.MOST_REQUESTS
    step = engine_map.MOST_CELLS // rows
    cells = draw_blocks(pool, [ids[: step * row + step] if nested else ids[row::rows] for row in range(rows)])
    name = short_name("chatcmpl-" + "0" * 32 + "-999")
    big = 10**6
    drawn = EngineMap(
        at=1e6 + 1 / 3, block_size=32, used=blocks, cached=0, free=0, running=big, waiting=big, cells=cells, tiers=[],
        requests=[
            MapRequest(
                name=name, tenant="t" * 64, state="preempted", queued=1e6 + 1 / 3, prompt=big, output=big, most_output=big,
                computed=big, cached=big, blocks=big, full=big, preemptions=99,
            )
        ] * rows,
        steps=[
            MapStep(number=big, ended=1e6 + 1 / 3, seconds=1 / 3, prompt_tokens=big, decodes=big, prompts=[(name, big, big)] * 8)
        ] * engine_map.MOST_STEPS,
    )  # fmt: skip
    assert len(cells.runs) == 6 * engine_map.MOST_CELLS or blocks > engine_map.MOST_CELLS
    size = len(msgspec.json.encode(drawn))
    assert size < 192 * 1024, size


@pytest.mark.parametrize(
    ("request_id", "name"),
    [
        ("chatcmpl-3c7cfcf8e0a94d5b8d3ed0b9ff1a2c44-0", "3c7cfcf8-0"),
        ("cmpl-3c7cfcf8e0a94d5b8d3ed0b9ff1a2c44-12", "3c7cfcf8-12"),
        ("3c7cfcf8e0a94d5b8d3ed0b9ff1a2c44", "3c7cfcf8"),
        ("r1", "r1"),
    ],
)
def test_a_map_tells_too_little_of_an_id_to_ask_for_the_request(request_id, name):
    assert short_name(request_id) == name
