"""The blocks of a pool as squares on a map: what each is for, and whose it is.

One pass over all blocks and one over the tables. Nothing is kept between two maps: what nobody draws costs nothing.
"""

from collections.abc import Iterable, Iterator, Sequence

from scheduler.kv.block_pool import BlockPool
from scheduler.types.engine_map import MOST_CELLS, MOST_OWNERS, BlockCells, BlockState

_Cell = tuple[int, int, int, int, int]  # state, owners, place, active, cached: as in `BlockCells.runs`


class _OwnerSets(dict[tuple[int, int], int]):
    """Numbers of sets of rows: `sets[number, row]` is that of the set with one more row. Rows come in ascending order, so that
    equal sets have one number. 0 is nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[int]] = [[0]]

    def __missing__(self, key: tuple[int, int]) -> int:
        count, *rows = self.rows[key[0]]
        self.rows.append([count + 1, *rows, key[1]][: 1 + MOST_OWNERS])
        self[key] = number = len(self.rows) - 1
        return number


def draw_blocks(
    pool: BlockPool,
    tables: Iterable[Sequence[int]],
    saving: Iterable[int] = (),
    loading: Iterable[int] = (),
    most_cells: int = MOST_CELLS,
) -> BlockCells:
    """All blocks of the pool.

    Args:
        pool: the device's.
        tables: a block table for each row.
        saving: blocks that transfers read.
        loading: blocks that transfers fill.
        most_cells: squares.
    """
    state = pool.occupancy()
    owners, places, sets = [0] * pool.blocks, [0] * pool.blocks, _OwnerSets()
    for row, table in enumerate(tables):
        for place, block in enumerate(table):
            owners[block] = sets[owners[block], row]
            places[block] = place
    for kind, blocks in ((BlockState.SAVING, saving), (BlockState.LOADING, loading)):
        for block in blocks:
            state[block] = kind
    per_cell = -(-pool.blocks // most_cells)
    runs = _runs(_cells(state, owners, places, per_cell), per_cell)
    return BlockCells(blocks=pool.blocks, per_cell=per_cell, runs=runs, owners=_only_shown(runs, sets.rows))


def _only_shown(runs: list[int], sets: Sequence[list[int]]) -> list[list[int]]:
    """Nobody, and the sets that squares show, which get new numbers: of prompts that share beginnings there are many others."""
    numbers = {0: 0}
    for at in range(2, len(runs), 6):
        runs[at] = numbers.setdefault(runs[at], len(numbers))
    return [sets[number] for number in numbers]


def _cells(state: bytearray, owners: Sequence[int], places: Sequence[int], per_cell: int) -> Iterator[_Cell]:
    for begin in range(0, len(state), per_cell):
        part = state[begin : begin + per_cell]
        highest = max(part)
        first, cached = begin + part.index(highest), part.count(BlockState.CACHED)
        yield highest, owners[first], places[first], len(part) - part.count(BlockState.FREE) - cached, cached


def _runs(cells: Iterable[_Cell], per_cell: int) -> list[int]:
    """Cells that go on alike, as one run."""
    runs: list[int] = []
    length, next_one = 0, None
    for cell in cells:
        if cell == next_one:
            length += 1
            runs[-6] = length
        else:
            length = 1
            runs += (length, *cell)
        state, owner, place, active, cached = cell
        next_one = (state, owner, place + per_cell if owner else place, active, cached)
    return runs
