"""Compares what a scheduler draws with its books."""

from scheduler.kv.block_cells import draw_blocks
from scheduler.types.engine_map import BlockCells, BlockState
from scheduler.types.transfers import DEVICE

Cell = tuple[int, tuple[int, ...], int, int, int]  # state, rows of its owners, place in their tables, active, cached


def cells_of(drawn: BlockCells) -> list[Cell]:
    """Each square by itself."""
    found: list[Cell] = []
    for at in range(0, len(drawn.runs), 6):
        length, state, owners, place, active, cached = drawn.runs[at : at + 6]
        count, *rows = drawn.owners[owners]
        assert len(rows) == min(count, 8)
        step = drawn.per_cell if owners else 0
        found += [(state, tuple(rows), place + index * step, active, cached) for index in range(length)]
    return found


def check_map(scheduler, most_cells: int = 3) -> None:
    """The map says what the books say, at full size and with several blocks in a square."""
    pool, table = scheduler.pool, scheduler._table
    drawn = scheduler.draw_map(1.0)
    assert (drawn.used, drawn.cached, drawn.free) == (pool.used, pool.cached, pool.free)
    assert (drawn.running, drawn.waiting) == (len(table.running), len(table.waiting))
    assert sorted(row.name for row in drawn.requests) == sorted(table.open)
    tables = [table.open[row.name].block_table for row in drawn.requests]
    assert [row.blocks for row in drawn.requests] == [len(blocks) for blocks in tables]
    assert drawn.cells.per_cell == 1
    cells = cells_of(drawn.cells)
    moves = {block: move for move in scheduler.transfers.moves for block in move.blocks}
    for block, (state, rows, place, active, cached) in enumerate(cells):
        owners = [row for row, blocks in enumerate(tables) if block in blocks]
        assert list(rows) == owners[:8]
        assert not owners or place == tables[owners[0]].index(block)
        assert active == pool.in_use(block) and cached == (state == BlockState.CACHED)
        if block in moves:
            assert state == (BlockState.LOADING if moves[block].target == DEVICE else BlockState.SAVING)
        else:
            assert (state == BlockState.USED) == bool(owners)
    small = cells_of(draw_blocks(pool, tables, most_cells=most_cells))
    assert len(small) <= most_cells
    assert sum(cell[3] for cell in small) == pool.used and sum(cell[4] for cell in small) == pool.cached
