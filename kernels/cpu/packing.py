"""Weights as the int8 kernels read them: GGUF's blocks in tiles of 16 outputs, bit for bit what the file has.

The layout is described in `kernels/cpu/csrc/formats.h`; the library moves the bits (`csrc/pack.h`). Weights in floating point are
rounded to 8-bit groups (Q8_0's rule: scale = largest magnitude / 127).
"""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu.layouts import FORMATS, packed_size
from kernels.cpu.library import best_library

GROUP = 32


class MatrixStruct(ctypes.Structure):
    """`Matrix` of `csrc/formats.h`."""

    _fields_ = (
        ("records", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("outputs", "columns", "kind", "tile_bytes")),
    )


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A weight [outputs, columns].

    Attributes:
        records: uint8 [tiles, bytes of a tile].
        outputs: rows of the matrix; further rows of the last tile are zero.
        columns: a multiple of its format's.
        kind: of `FORMATS`.
    """

    records: Tensor
    outputs: int
    columns: int
    kind: str

    @property
    def struct(self) -> MatrixStruct:
        """As the library reads it; valid as long as `records` is."""
        number, tile = FORMATS[self.kind].number, self.records.shape[1]
        return MatrixStruct(self.records.data_ptr(), self.outputs, self.columns, number, tile)


def pack_gguf(rows: Tensor, kind: str) -> PackedMatrix:
    """Move GGUF blocks into tiles. Holds no lock while it does.

    Args:
        rows: uint8 [outputs, bytes of a row], as stored in the file.
        kind: one of `FORMATS`.
    """
    form, outputs = FORMATS[kind], len(rows)
    columns, rows = rows.shape[1] // form.block * form.columns, rows.contiguous()
    records = torch.empty(packed_size(kind, outputs, columns), dtype=torch.uint8)
    best_library().headrace_pack(form.number, rows.data_ptr(), rows.stride(0), outputs, columns, records.data_ptr())
    return PackedMatrix(records, outputs, columns, kind)


def pack_float(weight: Tensor) -> PackedMatrix:
    """Round fp32 [outputs, columns] to 8-bit groups and pack them."""
    outputs = len(weight)
    groups = weight.view(outputs, -1, GROUP)
    scale = (groups.abs().amax(dim=-1, keepdim=True) / 127).to(torch.float16)
    inverse = torch.where(scale > 0, 1 / scale.float(), 0.0)
    quants = (groups * inverse).round_().clamp_(-127, 127).to(torch.int8)
    stored = torch.cat((scale.view(torch.uint8), quants.view(torch.uint8)), dim=-1)
    return pack_gguf(stored.view(outputs, -1), "Q8_0")


def unpack(matrix: PackedMatrix) -> Tensor:
    """The values of a packed matrix: fp32 [outputs, columns]."""
    out = torch.empty(matrix.outputs, matrix.columns)
    best_library().headrace_unpack(ctypes.byref(matrix.struct), out.data_ptr())
    return out
