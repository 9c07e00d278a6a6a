"""Weights from a GGUF file into tiles (`kernels/cpu/packing.py`), read piece by piece, by one call that holds no lock.

What is read is packed from a buffer that stays in cache, and no page of the file becomes this process's memory, as those of a
mapping do (1.1 GB in Q4_K and Q6_K from the page cache: 0.5 s on two cores of an AMD EPYC, Zen 3).
"""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass

from kernels.cpu.layouts import FORMATS
from kernels.cpu.library import best_library

_CUT_OFF = -1


@dataclass(frozen=True, slots=True)
class FileMatrix:
    """A weight [outputs, columns] in an open file, its rows one after the other.

    Attributes:
        kind: one of `FORMATS`.
        outputs: number of rows.
        columns: a multiple of its format's.
        half: if not 0, the two halves of each head, so many rows each, stand in the file with their rows side by side.
        offset: of its first byte in the file.
        out: the address of memory for its tiles.
    """

    kind: str
    outputs: int
    columns: int
    half: int
    offset: int
    out: int


class _MatrixStruct(ctypes.Structure):
    """`FileMatrix` of `csrc/pack.h`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("kind", "outputs", "columns", "half", "offset")),
        ("out", ctypes.c_void_p),
    )


def pack_file(file: int, matrices: Sequence[FileMatrix]) -> None:
    """Read matrices through the descriptor `file`, and write their tiles.

    Raises:
        EOFError: the file ends before a matrix does.
        OSError: it cannot be read, or no library is built that this processor can run.
    """
    structs = (_MatrixStruct * len(matrices))(
        *(
            _MatrixStruct(FORMATS[each.kind].number, each.outputs, each.columns, each.half, each.offset, each.out)
            for each in matrices
        )
    )
    failed = best_library().headrace_pack_file(file, ctypes.byref(structs), len(structs))
    if failed == _CUT_OFF:
        raise EOFError("the file is cut off")
    if failed:
        raise OSError(failed, os.strerror(failed))
