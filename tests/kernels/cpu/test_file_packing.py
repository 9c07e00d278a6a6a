"""Matrices packed as they are read: the bits of those that are in memory, and a refusal where a file does not have them."""

import os

import pytest
import torch

from kernels.cpu.build import build, compiler
from kernels.cpu.file_packing import FileMatrix, pack_file
from kernels.cpu.layouts import FORMATS, packed_size
from kernels.cpu.packing import pack_gguf
from kernels.cpu.variants import supported
from tests.kernels.cpu.test_formats import blocks

pytestmark = pytest.mark.skipif(not supported() or compiler() is None, reason="no C++ compiler, or another processor")
OFFSET, GUARD = 37, 64


@pytest.fixture(scope="module", autouse=True)
def built():
    build(supported()[:1])


def as_stored(rows, half):
    """Rows with those of the two halves of each head side by side, as llama.cpp's converter leaves them."""
    return rows if not half else rows.view(-1, 2, half, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def packed_from(path, stored, kind, half=0, size=None):
    """What `pack_file` makes of these rows in a file, between other bytes; nothing is written behind it."""
    outputs, columns = len(stored), stored.shape[1] // FORMATS[kind].block * FORMATS[kind].columns
    path.write_bytes(b"x" * OFFSET + stored.contiguous().numpy().tobytes() + b"x" * 99)
    if size is not None:
        os.truncate(path, size)
    tiles, each = packed_size(kind, outputs, columns)
    memory = torch.full((tiles * each + GUARD,), 255, dtype=torch.uint8)
    with path.open("rb") as file:
        pack_file(file.fileno(), [FileMatrix(kind, outputs, columns, half, OFFSET, memory.data_ptr())])
    assert (memory[-GUARD:] == 255).all()
    return memory[:-GUARD].view(tiles, each)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("outputs", "half"), [(35, 0), (48, 24), (64, 16), (96, 8), (40, 4)])
def test_a_file_gives_the_bits_that_memory_does(tmp_path, kind, outputs, half):
    rows = torch.from_numpy(blocks(kind, outputs, 512))
    packed = packed_from(tmp_path / "f", as_stored(rows, half), kind, half)
    assert torch.equal(packed, pack_gguf(rows, kind).records)


@pytest.mark.parametrize("half", [0, 24])
@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0"])
def test_what_takes_several_reads_is_packed_alike(tmp_path, kind, half):
    """A megabyte and more; heads of 48 rows do not end where tiles do."""
    rows = torch.from_numpy(blocks(kind, 480, 4096))
    assert rows.nbytes > 2**20
    packed = packed_from(tmp_path / "f", as_stored(rows, half), kind, half)
    assert torch.equal(packed, pack_gguf(rows, kind).records)


def test_several_matrices_of_several_types_in_one_call(tmp_path):
    rows = {kind: torch.from_numpy(blocks(kind, 20, 256)) for kind in ("Q6_K", "Q4_0", "Q4_K")}
    path, out, end = tmp_path / "f", [], 0
    path.write_bytes(b"".join(each.numpy().tobytes() for each in rows.values()))
    matrices = []
    for kind, each in rows.items():
        out.append(torch.empty(packed_size(kind, 20, 256), dtype=torch.uint8))
        matrices.append(FileMatrix(kind, 20, 256, 0, end, out[-1].data_ptr()))
        end += each.nbytes
    with path.open("rb") as file:
        pack_file(file.fileno(), matrices)
    for kind, each in zip(rows, out, strict=True):
        assert torch.equal(each, pack_gguf(rows[kind], kind).records)


def test_a_file_that_ends_within_a_matrix_is_refused(tmp_path):
    rows = torch.from_numpy(blocks("Q4_K", 480, 4096))
    for size in (OFFSET + rows.nbytes - 1, OFFSET + 2**19, OFFSET, 0):
        with pytest.raises(EOFError, match="cut off"):
            packed_from(tmp_path / "f", rows, "Q4_K", size=size)


def test_what_cannot_be_read_is_the_systems_error(tmp_path):
    out = torch.empty(packed_size("Q4_0", 16, 32), dtype=torch.uint8)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            pack_file(folder, [FileMatrix("Q4_0", 16, 32, 0, 0, out.data_ptr())])
    finally:
        os.close(folder)
