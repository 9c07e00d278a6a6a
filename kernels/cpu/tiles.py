"""From how many rows on products take the processor's tiles (AMX), where it has any. Imports no torch.

Both ways give the same bits (`csrc/tiles.h`), so it is a matter of time alone, and that is measured: in a fraction of a second,
when a processor's first engine starts. What came out is kept beside the library, if that place can be written.
"""

import ctypes
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

from kernels.cpu.layouts import FORMATS
from kernels.cpu.library import open_library
from kernels.cpu.variants import processor

NEVER = 2**63 - 1
COUNTS = (8, 16, 48)  # rows that are tried: the fewest that can take tiles, one full tile, a whole task
ROUNDS = 15
_COLUMNS = 4096


class TilesFrom(NamedTuple):
    """From how many rows on: with types of weights that have a scale for each 32 columns, and for each 16."""

    wide: int
    narrow: int

    def __str__(self) -> str:
        if self == NO_TILES:
            return "no tiles"

        def words(rows: int) -> str:
            return "never" if rows == NEVER else f"from {rows} rows on"

        return f"tiles {words(self.wide)}; of types with a scale for 16 columns {words(self.narrow)}"


NO_TILES = TilesFrom(NEVER, NEVER)


def use_tiles(path: Path, tiles: TilesFrom | None = None) -> TilesFrom:
    """Have the library at `path` take tiles, from where they were measured to be faster unless `tiles` says it.

    Returns what holds now: `NO_TILES` where the processor has none, or the system does not grant them.
    """
    library = open_library(path)
    if not library.headrace_tiles_permitted():
        return NO_TILES
    if tiles is None:
        place = path.with_suffix(".tiles")
        tiles = _kept(place) or _keep(place, measure(library))
    library.headrace_tiles_from(*tiles)
    return tiles


def measure(library: ctypes.CDLL) -> TilesFrom:
    """Time a type of each kind on this thread."""
    wide, narrow = (FORMATS[kind].number for kind in ("Q4_K", "Q6_K"))

    def faster(number: int) -> int:
        return first_faster(lambda rows, tiled: library.headrace_seconds(number, rows, _COLUMNS, tiled))

    return TilesFrom(faster(wide), faster(narrow))


def first_faster(seconds: Callable[[int, bool], float]) -> int:
    """The least of `COUNTS` from which on tiles are faster by the medians of `seconds(rows, tiled)`; `NEVER` if they never are."""
    first = NEVER
    for rows in reversed(COUNTS):
        taken = [(seconds(rows, True), seconds(rows, False)) for _ in range(ROUNDS)]
        tiled, plain = (median(each) for each in zip(*taken, strict=True))
        if tiled >= plain:
            break
        first = rows
    return first


def _kept(place: Path) -> TilesFrom | None:
    """What was measured on this processor before, if it was and can be read."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads(place.read_text(encoding="utf-8"))
        if found["processor"] == processor():
            return TilesFrom(int(found["wide"]), int(found["narrow"]))
    return None


def _keep(place: Path, tiles: TilesFrom) -> TilesFrom:
    """Written whole or not at all: engines of one machine may start together."""
    partial = place.with_suffix(f".{os.getpid()}.partial")
    with suppress(OSError):
        partial.write_text(json.dumps({"processor": processor(), **tiles._asdict()}) + "\n", encoding="utf-8")
        partial.replace(place)
    return tiles
