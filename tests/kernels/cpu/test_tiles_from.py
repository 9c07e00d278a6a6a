"""From how many rows on products take tiles: by a measurement, which is kept, and which no answer depends on."""

import json

import pytest

from kernels.cpu import tiles
from kernels.cpu.build import build, compiler
from kernels.cpu.layouts import FORMATS
from kernels.cpu.native import NativeOps
from kernels.cpu.tiles import COUNTS, NEVER, NO_TILES, ROUNDS, TilesFrom, first_faster, measure, use_tiles
from kernels.cpu.variants import VARIANTS, processor, supported


def timed(*faster):
    """Times of a processor whose tiles are faster at these numbers of rows."""
    return lambda rows, tiled: rows * (0.5 if tiled and rows in faster else 1.0)


@pytest.mark.parametrize(
    ("faster", "first"),
    [((8, 16, 48), 8), ((16, 48), 16), ((48,), 48), ((), NEVER), ((8,), NEVER), ((8, 48), 48)],
)
def test_tiles_are_taken_from_where_they_are_faster_for_more_rows_too(faster, first):
    assert first_faster(timed(*faster)) == first


def test_a_tie_is_for_vectors():
    assert first_faster(lambda rows, tiled: 1.0) == NEVER


def test_medians_are_compared():
    """What else runs on the machine makes less than half of the timings longer."""
    calls = iter(range(10**6))

    def seconds(rows, tiled):
        disturbed = tiled and next(calls) % ROUNDS < ROUNDS // 2
        return timed(*COUNTS)(rows, tiled) * (100 if disturbed else 1)

    assert first_faster(seconds) == COUNTS[0]


class Library:
    """In place of a built one: tiles are faster from 16 rows on with scales for 32 columns, and never with those for 16."""

    def __init__(self, permitted=True):
        self.permitted, self.timings, self.told = permitted, 0, None

    def headrace_tiles_permitted(self):
        return self.permitted

    def headrace_seconds(self, number, rows, columns, tiled):
        self.timings += 1
        return timed(*((16, 48) if number == FORMATS["Q4_K"].number else ()))(rows, tiled)

    def headrace_tiles_from(self, wide, narrow):
        self.told = (wide, narrow)


MEASURED = TilesFrom(16, NEVER)


@pytest.fixture
def library(monkeypatch):
    found = Library()
    monkeypatch.setattr(tiles, "open_library", lambda path: found)
    return found


def test_what_was_measured_is_told_and_kept(library, tmp_path):
    path = tmp_path / "amx-0123.so"
    assert use_tiles(path) == MEASURED == library.told
    assert library.timings > 0
    assert [each.name for each in tmp_path.iterdir()] == ["amx-0123.tiles"]
    library.timings, library.told = 0, None
    assert use_tiles(path) == MEASURED == library.told
    assert library.timings == 0


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"wide": 8, "narrow": 8}', '{"processor": "another", "wide": 8, "narrow": 8}'],
)
def test_what_cannot_be_read_or_is_of_another_processor_is_measured_anew(library, tmp_path, text):
    place = tmp_path / "amx.tiles"
    place.write_text(text)
    assert use_tiles(tmp_path / "amx.so") == MEASURED
    assert json.loads(place.read_text()) == {"processor": processor(), "wide": 16, "narrow": NEVER}


def test_a_place_that_cannot_be_written_costs_a_measurement_each_time(library, tmp_path):
    path = tmp_path / "gone" / "amx.so"
    assert use_tiles(path) == use_tiles(path) == MEASURED
    assert library.timings > 0 and not path.parent.exists()


def test_what_is_said_is_neither_measured_nor_kept(library, tmp_path):
    assert use_tiles(tmp_path / "amx.so", TilesFrom(8, 48)) == (8, 48) == library.told
    assert library.timings == 0 and not list(tmp_path.iterdir())


def test_where_the_system_grants_no_tiles_there_are_none(library, tmp_path):
    library.permitted = False
    assert use_tiles(tmp_path / "amx.so") == use_tiles(tmp_path / "amx.so", TilesFrom(8, 8)) == NO_TILES
    assert library.told is None and library.timings == 0 and not list(tmp_path.iterdir())


def test_it_can_be_said_in_words():
    assert str(MEASURED) == "tiles from 16 rows on; of types with a scale for 16 columns never"
    assert str(NO_TILES) == "no tiles"
    assert str(NO_TILES) == "no tiles"


needs_compiler = pytest.mark.skipif(
    not supported() or compiler() is None, reason="no C++ compiler, or another processor"
)


@needs_compiler
def test_builds_for_processors_without_tiles_have_none():
    """And answer all the same what is asked of every build."""
    build([VARIANTS[-1]])
    ops = NativeOps(VARIANTS[-1].library, 1)
    assert ops.tiles == NO_TILES
    assert not VARIANTS[-1].library.with_suffix(".tiles").exists()
    assert measure(ops.library) is not None
    assert 0 < ops.library.headrace_seconds(FORMATS["Q4_K"].number, 8, 256, False) < 10


@needs_compiler
def test_a_measurement_goes_with_its_build(monkeypatch, tmp_path):
    monkeypatch.setattr("kernels.cpu.variants.BUILDS", tmp_path)
    monkeypatch.setattr("kernels.cpu.build.BUILDS", tmp_path)
    monkeypatch.setattr("kernels.cpu.build.compile_library", lambda command, flags, library: library.touch())
    current, stale = VARIANTS[-1].library.with_suffix(".tiles"), tmp_path / "amx-0123.tiles"
    current.write_text("{}")
    stale.write_text("{}")
    build([VARIANTS[-1]])
    assert current.exists() and not stale.exists()
