"""Where a tensor's bytes are in a file, whatever kind of file it is."""

import mmap
from dataclasses import dataclass, replace
from pathlib import Path

_PIECE = 2**20  # bytes compared at once


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        name: in the file.
        path: of the file.
        kind: the storage type, as the file's format calls it.
        shape: rows first.
        offset: of its first byte in the file.
        size: in bytes.
        first_row: of the tensor with that name, of which this is a part; None: this is all of it.
    """

    name: str
    path: Path
    kind: str
    shape: tuple[int, ...]
    offset: int
    size: int
    first_row: int | None = None

    def split(self, *counts: int) -> "list[StoredTensor]":
        """Its rows as several tensors, so many of them each; `counts` add up to all of them."""
        assert sum(counts) == self.shape[0], f"{self.name} has {self.shape[0]} rows, not {counts}"
        each, first, parts = self.size // self.shape[0], 0, []
        for count in counts:
            shape, offset = (count, *self.shape[1:]), self.offset + first * each
            parts.append(replace(self, shape=shape, offset=offset, size=count * each, first_row=first))
            first += count
        return parts

    def equals(self, other: "StoredTensor") -> bool:
        """Whether both hold the same values in the same type and shape; reads both up to the first difference.

        Raises:
            OSError: a file cannot be read.
        """
        if (self.kind, self.shape, self.size) != (other.kind, other.shape, other.size):
            return False
        with mapped(self.path) as ours, mapped(other.path) as theirs:
            return all(
                ours[self.offset + at : self.offset + min(at + _PIECE, self.size)]
                == theirs[other.offset + at : other.offset + min(at + _PIECE, other.size)]
                for at in range(0, self.size, _PIECE)
            )


def mapped(path: Path) -> mmap.mmap:
    """The file at `path` in memory, to be read.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
