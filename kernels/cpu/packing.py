"""Weights as the int8 kernels read them: 4- and 8-bit groups of 32 columns, in tiles of 16 outputs.

The layout is described in `kernels/cpu/csrc/matmul.h`. GGUF's own quants are moved and never rounded again; fp32 weights are
rounded to 8-bit groups (Q8_0's rule: scale = largest magnitude / 127). Scales and minima of 4-bit groups become 16-bit integers,
multiples of one step per output: a group's sum is then completed by one integer product.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

GROUP = 32
TILE = 16

Kind = Literal["Q4_0", "Q4_1", "Q8_0"]
_GROUP_BYTES: dict[Kind, int] = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A weight [outputs, columns].

    Attributes:
        records: uint8 [tiles, groups, record]; a record is 320 bytes for 4 bits and 544 for 8.
        steps: fp32 [tiles, 16], the steps that the integers of 4-bit groups are multiples of; unused for 8 bits.
        outputs: rows of the matrix; further rows of the last tile are zero.
        columns: a multiple of 32.
        bits: 4 or 8.
    """

    records: Tensor
    steps: Tensor
    outputs: int
    columns: int
    bits: int


def pack_gguf(rows: Tensor, kind: Kind) -> PackedMatrix:
    """Move GGUF groups into tiles.

    Args:
        rows: uint8 [outputs, groups * bytes per group], as stored in the file.
        kind: how a group is stored: an fp16 scale, for Q4_1 an fp16 minimum, then the quants.
    """
    size = _GROUP_BYTES[kind]
    outputs, groups = rows.shape[0], rows.shape[1] // size
    tiles = _tiles(rows.view(outputs, groups, size))
    if kind == "Q8_0":
        records = torch.cat((_scales(tiles), _quants(tiles[..., 2:] ^ 0x80)), dim=-1)
        return PackedMatrix(records, tiles.new_zeros(tiles.shape[:2], dtype=torch.float32), outputs, groups * GROUP, 8)
    scale = _halves(tiles, 0)
    middle = _halves(tiles, 2) + 8 * scale if kind == "Q4_1" else torch.zeros_like(scale)
    factors, steps = _factors(scale, middle)
    records = torch.cat((factors, _quants(tiles[..., 4 if kind == "Q4_1" else 2 :])), dim=-1)
    return PackedMatrix(records, steps, outputs, groups * GROUP, 4)


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
    records = matrix.records
    tiles, groups, _ = records.shape
    if matrix.bits == 8:
        scale = records[..., :32].contiguous().view(torch.float16).float()[:, :, None, :, None]
        values = records[..., 32:].reshape(tiles, groups, 8, TILE, 4).float().sub_(128) * scale
    else:
        factors = records[..., :64].contiguous().view(torch.int16).view(tiles, groups, 1, TILE, 1, 2).float()
        packed = records[..., 64:].reshape(tiles, groups, 4, TILE, 4)
        values = torch.cat((packed & 15, packed >> 4), dim=2).float().sub_(8) * factors[..., 0] + factors[..., 1]
        values *= matrix.steps[:, None, None, :, None]
    return values.permute(0, 3, 1, 2, 4).reshape(tiles * TILE, -1)[: matrix.outputs]


def _factors(scale: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
    """Weights scale * (q - 8) + middle as steps * (a * (q - 8) + b): (a, b) as bytes [tiles, groups, 64], and steps [tiles, 16].

    Args:
        scale: fp32 [tiles, 16, groups].
        middle: the same.
    """
    both = torch.stack((scale, middle), dim=-1)  # [tiles, 16, groups, 2]
    steps = both.abs().amax(dim=(2, 3)) / 32767
    whole = torch.where(steps[:, :, None, None] > 0, both / steps[:, :, None, None], 0.0).round_().to(torch.int16)
    return whole.transpose(1, 2).contiguous().view(torch.uint8).flatten(2), steps


def _tiles(groups: Tensor) -> Tensor:
    """[outputs, groups, bytes] as [tiles, 16, groups, bytes], the last tile padded with zeros."""
    missing = -len(groups) % TILE
    if missing:
        groups = torch.cat((groups, groups.new_zeros(missing, *groups.shape[1:])))
    return groups.view(-1, TILE, *groups.shape[1:])


def _scales(tiles: Tensor) -> Tensor:
    """The first two bytes of each group: [tiles, groups, 32]."""
    return tiles[..., :2].transpose(1, 2).flatten(2)


def _halves(tiles: Tensor, at: int) -> Tensor:
    """The fp16 at byte `at` of each group, as fp32 [tiles, 16, groups]."""
    return tiles[..., at : at + 2].contiguous().view(torch.float16).squeeze(-1).float()


def _quants(tiles: Tensor) -> Tensor:
    """[tiles, 16, groups, n] to [tiles, groups, 16 n]: dword j of all 16 outputs side by side."""
    dwords = tiles.contiguous().view(torch.int32)  # [tiles, 16, groups, n / 4]
    return dwords.permute(0, 2, 3, 1).contiguous().view(torch.uint8).flatten(2)
