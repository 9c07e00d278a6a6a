"""Products in the processor's tiles (AMX): the same bits as by vectors. Where there are none, their instructions are emulated."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch

from kernels.cpu import native_reference as reference
from kernels.cpu.build import COMMON_FLAGS, build, compile_library, compiler
from kernels.cpu.layouts import FORMATS
from kernels.cpu.native import NativeChunk, NativeDecoder, NativeLayer, NativeModel, NativeOps
from kernels.cpu.packing import pack_gguf
from kernels.cpu.tiles import NEVER, NO_TILES, TilesFrom
from kernels.cpu.variants import SOURCES, VARIANTS, supported
from tests.kernels.cpu.test_formats import EACH, blocks, close
from tests.kernels.cpu.test_native import weights

pytestmark = pytest.mark.skipif(not supported() or compiler() is None, reason="no C++ compiler, or another processor")
HERE = Path(__file__).parent
AMX = VARIANTS[0]
EMULATION = ("-mavx2", "-DEMULATE_VNNI", *(f"-include{HERE / name}" for name in ("emulated.h", "emulated_tiles.h")))
POINTER, INT = ctypes.c_void_p, ctypes.c_int64
ALWAYS = TilesFrom(8, 8)


@pytest.fixture(scope="session", autouse=True)
def real():
    """The build for this processor, which packs weights, too; it takes no tiles."""
    build(supported()[:1])
    return NativeOps(supported()[0].library, 2, NO_TILES)


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """`tiles_alone.cpp`, its instructions emulated."""
    library = tmp_path_factory.mktemp("alone") / "alone.so"
    compile_library(compiler(), ("-O0", *EMULATION, f"-I{SOURCES}"), library, HERE / "tiles_alone.cpp")
    opened = ctypes.CDLL(str(library))
    opened.alone_products.argtypes = (POINTER, POINTER, INT, POINTER, POINTER)
    opened.alone_instruction.argtypes = (INT, INT, POINTER, POINTER, POINTER)
    assert opened.alone_permitted()
    return opened


def quiet(library):
    """Since this was asked last, no instruction was used as it may not be; and nobody has kept tiles."""
    return library.emulated_faults() == 0 and library.emulated_in_use() == 0


def both_ways(alone, packed, inputs):
    """In tiles and by vectors, row by row: fp32 [rows, outputs] each."""
    rows, tiles = len(inputs), len(packed.records)
    tiled, plain = torch.full((2, rows, 16 * tiles), torch.nan)
    addresses = (inputs.data_ptr(), rows, tiled.data_ptr(), plain.data_ptr())
    assert alone.alone_products(ctypes.byref(packed.struct), *addresses)
    return tiled[:, : packed.outputs], plain[:, : packed.outputs]


# --- the instructions ---


@pytest.mark.parametrize(("rows", "columns"), [(1, 4), (16, 64), (16, 32), (9, 16), (3, 60)])
def test_a_product_of_tiles_is_one_of_matrices(alone, rows, columns):
    generator = torch.Generator().manual_seed(columns)
    x, w = (torch.randint(-128, 128, (n, columns), generator=generator, dtype=torch.int8) for n in (rows, 16))
    sums = torch.randint(-1000, 1000, (rows, 16), generator=generator, dtype=torch.int32)
    expected = sums + x.int() @ w.int().T
    quads = w.view(16, columns // 4, 4).transpose(0, 1).contiguous()
    alone.alone_instruction(rows, columns, x.data_ptr(), quads.data_ptr(), sums.data_ptr())
    assert torch.equal(sums, expected)
    assert quiet(alone)


@pytest.mark.parametrize("which", range(4))
def test_an_instruction_that_a_processor_would_refuse_is_found(alone, which):
    alone.alone_misuse(which)
    assert alone.emulated_faults() == 1
    assert quiet(alone)


def test_tiles_that_the_system_has_not_granted_are_found(alone):
    alone.emulated_permission(0)
    try:
        assert not alone.alone_permitted()
        alone.alone_misuse(-1)  # takes tiles, and no more
        assert alone.emulated_faults() == 1
    finally:
        alone.emulated_permission(1)
        assert alone.alone_permitted()


# --- products ---

SHAPES = ["Q8_0", "Q4_K", "Q6_K", "Q2_K"]  # one for each shape of a panel: they are what `tiles_alone.cpp` has


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("rows", [8, 9, 15, 16, 17, 31, 33, 48])
def test_tiles_give_the_bits_of_vectors(alone, real, kind, rows):
    """Emulated ones, and this processor's. Of whole panels and, where blocks are small enough, parts of one."""
    for columns in (256, 512) if FORMATS[kind].columns == 256 else (32, 416):
        packed = pack_gguf(torch.from_numpy(blocks(kind, 19, columns)), kind)
        inputs = weights(rows, columns, seed=rows) * torch.logspace(-3, 3, rows)[:, None]
        alone.emulated_products()
        tiled, plain = both_ways(alone, packed, inputs)
        assert torch.equal(tiled, plain)
        assert torch.equal(tiled, real.linear(inputs, packed))
        close(tiled, reference.linear(inputs, packed), inputs, packed)
        parts = columns // (16 if kind in ("Q6_K", "Q2_K") else 32)
        assert alone.emulated_products() == 2 * parts * -(-rows // 16)  # tiles of weights, parts, blocks of rows
    assert quiet(alone)


@pytest.mark.parametrize("kind", SHAPES)
def test_what_is_not_finite_stays_in_its_row(alone, kind):
    """Also where blocks overlap: 17 rows are two of nine, and row 8 is in both."""
    packed = pack_gguf(torch.from_numpy(blocks(kind, 16, 256)), kind)
    inputs = weights(17, 256)
    clean, _ = both_ways(alone, packed, inputs)
    for row in (0, 8, 16):
        broken = inputs.clone()
        broken[row, 40] = torch.inf
        tiled, _ = both_ways(alone, packed, broken)
        assert tiled[row].isnan().all()
        assert torch.equal(tiled[torch.arange(17) != row], clean[torch.arange(17) != row])


@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF])
def test_products_at_the_ends_of_what_bytes_can_be(alone, byte):
    stored = torch.full((16, 34), byte, dtype=torch.uint8)
    stored[:, :2] = torch.tensor([0, 0x3C], dtype=torch.uint8)  # fp16's 1
    packed = pack_gguf(stored, "Q8_0")
    for sign in (1.0, -1.0):
        inputs = torch.full((8, 32), 127 * sign)
        tiled, _ = both_ways(alone, packed, inputs)
        assert torch.equal(tiled, torch.full((8, 16), 32 * 127 * sign * int.from_bytes(bytes([byte]), signed=True)))


# --- the library ---


@pytest.fixture(scope="session", params=["emulated", AMX.name])
def library(request, tmp_path_factory):
    """A library with tiles, emulated or real."""
    if request.param == "emulated":
        path = tmp_path_factory.mktemp("emulated") / "amx.so"
        compile_library(compiler(), ("-O1", *EMULATION), path)
        return path
    if AMX not in supported():
        pytest.skip("this processor has no AMX")
    build([AMX])
    return AMX.library


@pytest.mark.long
@EACH
def test_any_number_of_rows_of_any_type_has_the_bits_of_vectors(library, kind):
    packed = pack_gguf(torch.from_numpy(blocks(kind, 83, 512)), kind)
    inputs = weights(50, 512) * torch.logspace(-3, 3, 50)[:, None]
    plain = NativeOps(library, 2, NO_TILES).linear(inputs, packed)
    ops = NativeOps(library, 2, ALWAYS)
    assert ops.tiles == ALWAYS
    for rows in range(1, 51):
        assert torch.equal(ops.linear(inputs[:rows], packed), plain[:rows])
        assert torch.equal(ops.linear(inputs[50 - rows :], packed), plain[50 - rows :])
    if hasattr(ops.library, "emulated_faults"):
        assert ops.library.emulated_products() > 0
        assert quiet(ops.library)


def random_model():
    """Two layers in types of all shapes of a panel; in the second, gate and up have different ones."""
    hidden, inner, dim, vocabulary, positions = 256, 512, 64, 64, 64

    def matrix(kind, outputs, columns=hidden):
        return pack_gguf(torch.from_numpy(blocks(kind, outputs, columns, seed=outputs)), kind)

    layers = [
        NativeLayer(
            q=matrix("Q4_K", hidden),
            k=matrix("Q8_0", 2 * dim),
            v=matrix("Q6_K", 2 * dim),
            o=matrix("Q5_K", hidden),
            gate=matrix("Q4_K", inner),
            up=matrix(up, inner),
            down=matrix("Q2_K", hidden, inner),
            input_norm=torch.ones(hidden),
            post_norm=torch.ones(hidden),
            down_bias=weights(1, hidden)[0],
        )
        for up in ("Q4_K", "Q6_K")
    ]
    return NativeModel(
        heads=4,
        kv_heads=2,
        dim=dim,
        eps=1e-5,
        layers=layers,
        embedding=matrix("Q8_0", vocabulary),
        head=matrix("Q6_K", vocabulary),
        final_norm=torch.ones(hidden),
        turns=[(torch.ones(positions, dim // 2), torch.zeros(positions, dim // 2))],
        turn_of_layer=[0, 0],
    )


@pytest.mark.long
def test_a_models_rows_have_the_same_bits_with_tiles_and_without(library):
    """A prompt whole or in two chunks, all rows wanted, and their logits."""
    model, table = random_model(), [3, 0, 2, 1]

    def run(tiles, *cuts):
        decoder = NativeDecoder(NativeOps(library, 2, tiles), model)
        storage, start, parts = torch.zeros(4, 2, 2, 2, 16 * 64 // 2, dtype=torch.int32), 0, []
        for rows in cuts:
            chunk = NativeChunk(rows, start, table, wanted=rows)
            parts.append(decoder.forward(range(start, start + rows), [chunk], storage).clone())
            start += rows
        hidden = torch.cat(parts)
        return hidden, decoder.logits(hidden).clone()

    expected = run(NO_TILES, 50)
    assert expected[0].isfinite().all() and len(expected[0].unique()) > 1000
    for tiles, *cuts in ((ALWAYS, 50), (ALWAYS, 17, 33), (TilesFrom(16, NEVER), 50), (ALWAYS, 7, 1, 42)):
        for ours, theirs in zip(run(tiles, *cuts), expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.long
def test_tiles_are_for_so_many_rows_as_is_said_and_more(library):
    ops = NativeOps(library, 2, TilesFrom(wide=16, narrow=NEVER))
    if not hasattr(ops.library, "emulated_faults"):
        pytest.skip("real tiles are not counted")
    packed = {kind: pack_gguf(torch.from_numpy(blocks(kind, 16, 256)), kind) for kind in ("Q4_K", "Q6_K")}
    for kind, rows, products in (("Q4_K", 15, 0), ("Q4_K", 16, 8), ("Q4_K", 17, 16), ("Q6_K", 48, 0)):
        ops.library.emulated_products()
        ops.linear(weights(rows, 256), packed[kind])
        assert ops.library.emulated_products() == products


@pytest.mark.long
def test_both_ways_can_be_timed(library):
    ops = NativeOps(library, 1, NO_TILES)
    for kind in ("Q4_K", "Q6_K"):
        for tiled in (True, False):
            assert 0 < ops.library.headrace_seconds(FORMATS[kind].number, 8, 256, tiled) < 10


@pytest.mark.long
def test_tiles_that_are_refused_are_not_used(library):
    ops = NativeOps(library, 1, NO_TILES)
    if not hasattr(ops.library, "emulated_faults"):
        pytest.skip("the system cannot be told to refuse")
    ops.library.emulated_permission(0)
    try:
        assert NativeOps(library, 1, ALWAYS).tiles == NO_TILES
    finally:
        ops.library.emulated_permission(1)
    assert NativeOps(library, 1, ALWAYS).tiles == ALWAYS


# --- what real processors get ---


def test_the_compiler_makes_tile_instructions(tmp_path):
    """Ahead of time, for a processor that need not be there."""
    text = tmp_path / "tiles.s"
    flags = (flag for flag in (*COMMON_FLAGS, *AMX.flags) if flag != "-shared")
    source = str(HERE / "tiles_alone.cpp")
    subprocess.run([compiler(), *flags, f"-I{SOURCES}", "-O1", "-S", source, "-o", str(text)], check=True)
    words = set(text.read_text().split())
    assert {"ldtilecfg", "tilezero", "tileloadd", "tdpbssd", "tilestored", "tilerelease"} <= words


@pytest.mark.long
def test_the_whole_library_builds_for_processors_with_tiles(tmp_path):
    compile_library(compiler(), AMX.flags, tmp_path / "amx.so")
    assert (tmp_path / "amx.so").stat().st_size > 0
