"""The types of weights that the kernels compute with, and how large they are. Imports no torch: the memory plan asks."""

from typing import NamedTuple

TILE = 16  # outputs that lie together


class TileLayout(NamedTuple):
    """A type of GGUF's that the kernels compute with.

    Attributes:
        number: of its `Kind` in `csrc/formats.h`.
        columns: of one block and of one record.
        block: bytes of a block of one output in the file.
        record: bytes of the same blocks of 16 outputs here.
    """

    number: int
    columns: int
    block: int
    record: int


FORMATS = {
    "Q4_0": TileLayout(0, 32, 18, 288),
    "Q4_1": TileLayout(1, 32, 20, 320),
    "Q5_0": TileLayout(2, 32, 22, 352),
    "Q5_1": TileLayout(3, 32, 24, 384),
    "Q8_0": TileLayout(4, 32, 34, 544),
    "IQ4_NL": TileLayout(5, 32, 18, 288),
    "MXFP4": TileLayout(6, 32, 17, 272),
    "Q2_K": TileLayout(7, 256, 84, 1344),
    "Q3_K": TileLayout(8, 256, 110, 1824),
    "Q4_K": TileLayout(9, 256, 144, 2368),
    "Q5_K": TileLayout(10, 256, 176, 2880),
    "Q6_K": TileLayout(11, 256, 210, 3360),
    "IQ4_XS": TileLayout(12, 256, 136, 2208),
}


def packed_size(kind: str, outputs: int, columns: int) -> tuple[int, int]:
    """Tiles of a packed matrix, and bytes of each."""
    form = FORMATS[kind]
    return -(-outputs // TILE), columns // form.columns * form.record
