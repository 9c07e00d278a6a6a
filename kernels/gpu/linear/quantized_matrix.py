"""4- and 8-bit weights in the order in which `kernels/gpu/linear/quantized.py` reads them, and the packers for it.

A matrix [outputs, columns] is cut into tiles of 128 outputs and spans of columns. A tile's span is one contiguous range of int16
words `[128, lane]`, so that a program streams through memory. A word holds one value of each of its planes: 4 of 4 bits or
2 of 8 bits. Plane p, lane r of span s is column `(s * planes + p) * lanes + r`, so a plane is a run of neighbouring columns, and
unpacking it from a tile in registers moves nothing between threads: shift, mask, done.

    lanes   32 if a group is 32 columns (a plane is then a group), else 64
    span    planes * lanes columns: 64 or 128 (groups of 32), 128 or 256 (others)

Columns are padded to whole spans and outputs to whole tiles, with zero scales. Scales are laid out as `[tile, group, 128]`.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

TILE = 128
Form = Literal["symmetric", "zeros", "minima", "channel"]
GgufKind = Literal["Q4_0", "Q4_1", "Q8_0"]
GROUP_BYTES: dict[GgufKind, int] = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}  # of 32 values in a file
_PACKED_AT_ONCE = 8192  # outputs: packing takes 8 times the memory of 8-bit weights, 32 times that of 4-bit ones


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedMatrix:
    """A packed weight [outputs, columns]; `form` says what value an integer q stands for.

    Attributes:
        words: int16 [tiles, spans, 128, lanes].
        scales: fp16 [tiles, groups, 128]; for form `channel` fp32 [tiles, 1, 128].
        extras: fp16 in the shape of `scales`: zeros (integers) or minima; None for the other forms.
        form: `symmetric`: scale * (q - 8) with 4 bits, scale * q with 8. `zeros`: scale * (q - zero). `minima`: scale * q +
            minimum. `channel`: one scale per output, 8 bits.
        outputs: rows of the matrix.
        columns: of the matrix, without padding.
        bits: 4 (q from 0 to 15) or 8 (q from -128 to 127).
        group: columns that share a scale: 32, 64 or 128; 0 for form `channel`.
    """

    words: Tensor
    scales: Tensor
    extras: Tensor | None
    form: Form
    outputs: int
    columns: int
    bits: int
    group: int

    @property
    def planes(self) -> int:
        """Values per word."""
        return 16 // self.bits

    @property
    def lanes(self) -> int:
        """Columns per plane."""
        return self.words.shape[3]

    @property
    def nbytes(self) -> int:
        """The bytes that one product reads."""
        return sum(part.nbytes for part in (self.words, self.scales, self.extras) if part is not None)

    def to(self, device: torch.device | str) -> "QuantizedMatrix":
        """The same matrix on another device."""
        extras = None if self.extras is None else self.extras.to(device)
        return replace(self, words=self.words.to(device), scales=self.scales.to(device), extras=extras)

    def tiles(self, first: int, last: int) -> "QuantizedMatrix":
        """The outputs of tiles `[first, last)`, as views."""
        span = slice(first, last)
        extras = None if self.extras is None else self.extras[span]
        outputs = min(last * TILE, self.outputs) - first * TILE
        return replace(self, words=self.words[span], scales=self.scales[span], extras=extras, outputs=outputs)


def pack(
    quants: Tensor, scales: Tensor, extras: Tensor | None, *, form: Form, bits: int, group: int
) -> QuantizedMatrix:
    """Pack integers and scales in plain order into tiles.

    Args:
        quants: uint8 (4 bits) or int8 (8 bits) [outputs, columns].
        scales: [outputs, groups]; for form `channel` [outputs, 1].
        extras: [outputs, groups] for `zeros` and `minima`, else None.
        form: what a value stands for, as in `QuantizedMatrix`.
        bits: 4 or 8.
        group: 32, 64 or 128; 0 for form `channel`.

    Raises:
        ValueError: a combination that the kernel does not know, or columns that are not whole groups.
    """
    outputs, columns = quants.shape
    if bits not in (4, 8) or group not in ((0,) if form == "channel" else (32, 64, 128)):
        raise ValueError(f"no kernel for {bits} bits in groups of {group}; known: 4 or 8 bits, groups of 32, 64 or 128")
    if form == "channel" and bits != 8:
        raise ValueError(f"one scale per output goes with 8 bits, not {bits}")
    if form in ("zeros", "minima") and bits != 4:
        raise ValueError(f"form {form!r} goes with 4 bits, not {bits}")
    if (extras is not None) != (form in ("zeros", "minima")):
        raise ValueError(f"form {form!r} {'takes no' if extras is not None else 'needs'} extras")
    if group and columns % group:
        raise ValueError(f"{columns} columns are not whole groups of {group}")
    lanes, planes = lanes_of(group), 16 // bits
    wide = -(-columns // (lanes * planes)) * lanes * planes
    padded = torch.zeros((-(-outputs // TILE) * TILE, wide), dtype=torch.int32, device=quants.device)
    padded[:outputs, :columns] = quants.to(torch.int32) & (2**bits - 1)
    values = padded.view(-1, TILE, wide // (lanes * planes), planes, lanes)
    shifts = torch.arange(planes, device=quants.device, dtype=torch.int32)[:, None] * bits
    words = (values << shifts).sum(3, dtype=torch.int32)
    groups = wide // group if group else 1
    return QuantizedMatrix(
        words=torch.where(words > 32767, words - 65536, words).to(torch.int16).transpose(1, 2).contiguous(),
        scales=_tiled(scales.to(torch.float32 if form == "channel" else torch.float16), groups),
        extras=None if extras is None else _tiled(extras.to(torch.float16), groups),
        form=form,
        outputs=outputs,
        columns=columns,
        bits=bits,
        group=group,
    )


def lanes_of(group: int) -> int:
    """Columns of a plane, for groups of that many; 0 for one scale per output."""
    return 32 if group == 32 else 64


def packed_bytes(outputs: int, columns: int, bits: int, extras: bool) -> int:
    """`nbytes` of a matrix in groups of 32, before it is packed."""
    wide = -(-columns // (512 // bits)) * (512 // bits)
    return -(-outputs // TILE) * TILE * (wide * bits // 8 + wide // 32 * (4 if extras else 2))


def from_gguf(rows: Tensor, kind: GgufKind) -> QuantizedMatrix:
    """GGUF groups of 32 as the file stores them: uint8 [outputs, groups * bytes per group]. Nothing is rounded again."""
    parts = [_from_gguf(some, kind) for some in torch.split(rows, _PACKED_AT_ONCE)]
    if len(parts) == 1:
        return parts[0]
    extras = [part.extras for part in parts if part.extras is not None]
    return replace(
        parts[0],
        words=torch.cat([part.words for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        extras=torch.cat(extras) if extras else None,
        outputs=len(rows),
    )


def _from_gguf(rows: Tensor, kind: GgufKind) -> QuantizedMatrix:
    blocks = rows.reshape(len(rows), -1, GROUP_BYTES[kind])
    scales = blocks[..., :2].contiguous().view(torch.float16).squeeze(-1)
    if kind == "Q8_0":
        quants = blocks[..., 2:].contiguous().view(torch.int8).flatten(1)
        return pack(quants, scales, None, form="symmetric", bits=8, group=32)
    nibbles = blocks[..., 4 if kind == "Q4_1" else 2 :]
    quants = torch.cat((nibbles & 15, nibbles >> 4), dim=-1).flatten(1)
    if kind == "Q4_0":
        return pack(quants, scales, None, form="symmetric", bits=4, group=32)
    minima = blocks[..., 2:4].contiguous().view(torch.float16).squeeze(-1)
    return pack(quants, scales, minima, form="minima", bits=4, group=32)


def dequantize(matrix: QuantizedMatrix) -> Tensor:
    """The values of a packed matrix: fp32 [outputs, columns]."""
    tiles, spans, _, lanes = matrix.words.shape
    shifts = torch.arange(matrix.planes, device=matrix.words.device, dtype=torch.int32)[:, None] * matrix.bits
    words = matrix.words.transpose(1, 2)[:, :, :, None].to(torch.int32)
    quants = ((words >> shifts) & (2**matrix.bits - 1)).flatten(2)  # [tiles, 128, columns]
    values = torch.where(quants > 127, quants - 256, quants).float()
    if matrix.bits == 4 and matrix.form == "symmetric":
        values -= 8
    width = matrix.group or spans * matrix.planes * lanes
    if matrix.form == "zeros":
        values -= _spread(matrix.extras, width)
    values *= _spread(matrix.scales, width)
    if matrix.form == "minima":
        values += _spread(matrix.extras, width)
    return values.view(tiles * TILE, -1)[: matrix.outputs, : matrix.columns]


def _spread(values: Tensor | None, width: int) -> Tensor:
    """[tiles, groups, 128] to fp32 [tiles, 128, groups * width]."""
    assert values is not None
    return values.float().transpose(1, 2).repeat_interleave(width, dim=2)


def _tiled(values: Tensor, groups: int) -> Tensor:
    """[outputs, groups] to [tiles, groups, 128], padded with zeros."""
    padded = values.new_zeros((-(-len(values) // TILE) * TILE, groups))
    padded[: len(values), : values.shape[1]] = values
    return padded.view(-1, TILE, groups).transpose(1, 2).contiguous()
