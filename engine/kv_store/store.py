"""What every place below the device has in common: blocks go in and come out by the name of their content."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from scheduler.types.block_hash import BlockKey


class StoreLost(Exception):
    """The store failed as a whole (disk full, permission gone, device error) and must not be used any more."""


class StoreRefused(Exception):
    """The store cannot be opened; the sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Blocks as bytes: rows `ids` of `pool`.

    Attributes:
        pool: uint8 [n, block bytes], contiguous; on the host, unless the store says that it takes a GPU's.
        ids: one row for each block, in the order of the block_keys they go with. Neighbours may be copied together.
    """

    pool: Tensor
    ids: Sequence[int]


class Kept(NamedTuple):
    """A content that a store held when it was opened."""

    block_key: BlockKey
    size: int  # bytes it takes there


class BlockStore(Protocol):
    """A place that keeps copies of KV blocks.

    Contract. The store owns its memory and decides where in it a block lies; the caller owns the rows it passes and keeps them as
    they are until the call returns. The *scheduler* decides what is kept: a store never evicts, it is told to `drop`, and it is
    never given more than its size. A content is there from the return of `put` until `drop` (or until `get` finds it damaged);
    it is never served half-written or damaged. Calls for different contents may come from several threads at once; for one content
    they come one after the other. No method but `get` and `put` takes long.

    Raises (from `put` and `get`):
        StoreLost: nothing it holds can be trusted or reached any more; all later calls raise it too.
    """

    def put(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[int]:
        """Keep these blocks. Returns the bytes each takes; 0 where it was not kept. One that is there already is kept as it is."""
        ...

    def get(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[bool]:
        """Fill the rows. False where the content is not there (any more); such a row's bytes are undefined."""
        ...

    def drop(self, keys: Iterable[bytes]) -> None:
        """Forget these contents; unknown ones are ignored."""
        ...

    def kept(self) -> Iterable[Kept]:
        """What was there at opening, least recently used first."""
        ...

    def check_integrity(self) -> None:
        """Compare the books with each other.

        Raises:
            AssertionError: naming the first contradiction.
        """
        ...

    def close(self) -> None:
        """Give memory, files and threads back. What is durable stays."""
        ...
