"""Matrices of a file on their way into tiles, a layer or a table at a time."""

import ctypes
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from configs.model.config import ModelConfig
from configs.model.source import ModelError
from engine.loading.stored import StoredMatrix
from engine.models.registry import family_of
from kernels.cpu.file_packing import FileMatrix, pack_file
from kernels.cpu.layouts import FORMATS, packed_size

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")  # of a layer, by their roles
_LINE = 64  # bytes of a cache, on which matrices begin

Blocks = Callable[[str], StoredMatrix | None]  # what a file has, by the Hugging Face name


@dataclass(frozen=True, slots=True)
class Tiles:
    """A packed matrix: its tiles begin `start` bytes into `memory`, which other matrices of its layer share."""

    memory: mmap.mmap
    start: int
    kind: str
    outputs: int
    columns: int


def tables(config: ModelConfig) -> list[str]:
    """The names of a model's matrices that are of no layer: the embedding, and the head unless it is the same."""
    roles = ("embedding",) if config.tie_word_embeddings else ("embedding", "head")
    return [family_of(config).tensor(role).hf for role in roles]


def matrices(config: ModelConfig, layer: int) -> list[str]:
    """The names of a layer's matrices."""
    return [family_of(config).tensor(role, layer).hf for role in MATRICES]


def pack(names: Sequence[str], blocks: Blocks) -> dict[str, Tiles]:
    """Pack those of `names` that a file has in a type that the kernels know, into memory of their own.

    Raises:
        ModelError: a file ends before it should.
        OSError: a file cannot be read, or there is not enough memory.
    """
    found = {name: stored for name in names if (stored := blocks(name)) is not None and stored.tensor.kind in FORMATS}
    starts, end = dict[str, int](), 0
    for name, stored in found.items():
        starts[name] = end
        end += -(-_tiles_bytes(stored) // _LINE) * _LINE
    if not found:
        return {}
    # Small pages, which are there at once; huge ones come later (`engine/cpu/huge_pages.py`).
    memory = mmap.mmap(-1, end, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for path in {stored.tensor.path for stored in found.values()}:
        here = {name: stored for name, stored in found.items() if stored.tensor.path == path}
        placed = [_placed(stored, address + starts[name]) for name, stored in here.items()]
        with path.open("rb", buffering=0) as file:
            try:
                pack_file(file.fileno(), placed)
            except EOFError as error:
                raise ModelError(f"{path.name} is cut off within {', '.join(here)}; download it again.") from error
    return {
        name: Tiles(memory, starts[name], stored.tensor.kind, *stored.tensor.shape) for name, stored in found.items()
    }


def _tiles_bytes(stored: StoredMatrix) -> int:
    outputs, columns = stored.tensor.shape
    return prod(packed_size(stored.tensor.kind, outputs, columns))


def _placed(stored: StoredMatrix, out: int) -> FileMatrix:
    outputs, columns = stored.tensor.shape
    return FileMatrix(stored.tensor.kind, outputs, columns, stored.half, stored.tensor.offset, out)
