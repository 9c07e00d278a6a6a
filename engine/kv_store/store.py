"""What every tier below the device has in common: blocks go in and come out by the name of their content."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

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
        pool: uint8 [n, block bytes], contiguous; in host memory, or a GPU's for a store that is `device_visible`.
        ids: one row for each block, in the order of the keys they go with. Neighbours may be copied together.
    """

    pool: Tensor
    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Lent:
    """Contents where they lie in a store: to be read, and only inside the `with` that gave them.

    Attributes:
        block_keys: those of the asked for that are there, in their order.
        rows: one for each.
    """

    block_keys: list[BlockKey]
    rows: Rows


class Kept(NamedTuple):
    """A content that a store held when it was opened."""

    block_key: BlockKey
    size: int  # bytes it takes there


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a store can do beyond keeping blocks. Whoever uses one asks for these, never for its class.

    Attributes:
        contiguous_rows: its blocks are rows of one range of host memory, which `lend` gives out without a copy.
        device_visible: `put` and `get` take rows of a GPU's pool. Of the others such rows are copied through host memory.
        shared: other processes put, get and drop at the same time: contents come and go without a word of ours.
        survives: what it keeps is there for the next process, which finds it in `kept`.
    """

    contiguous_rows: bool = False
    device_visible: bool = False
    shared: bool = False
    survives: bool = False


class BlockStore(ABC):
    """A place that keeps copies of KV blocks.

    Contract. The store owns its memory and decides where in it a block lies; the caller owns the rows it passes and keeps them as
    they are until the call returns. The *scheduler* decides what is kept: a store never evicts, it is told to `drop`, and it is
    never given more than its size. A content is there from the return of `put` until `drop` (or until `get` finds it damaged);
    it is never served half-written or damaged. Calls may come from several threads at once; for one content, `put` and `drop`
    come alone, and reads may overlap. No method but `get` and `put` takes long.

    Raises (from `put` and `get`):
        StoreLost: nothing it holds can be trusted or reached any more; all later calls raise it too.

    Attributes:
        capabilities: what it can do beyond that.
        save_copies: ranges of memory that `put` copied so far, neighbours together; 0 if each block goes by itself.
        load_copies: the same of `get`.
    """

    capabilities = Capabilities()
    save_copies: int = 0
    load_copies: int = 0

    @abstractmethod
    def put(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[int]:
        """Keep these blocks. Returns the bytes each takes; 0 where it was not kept. One that is there already is kept as it is."""

    @abstractmethod
    def get(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[bool]:
        """Fill the rows. False where the content is not there (any more); such a row's bytes are undefined."""

    @abstractmethod
    def drop(self, keys: Iterable[bytes]) -> None:
        """Forget the contents of these hashes; unknown ones are ignored."""

    def lend(self, block_keys: Sequence[BlockKey]) -> AbstractContextManager[Lent]:
        """Those of these contents that are there, to be read where they lie. Of stores with `contiguous_rows`.

        What is dropped meanwhile is not there any more for others, but its bytes stay until the last `with` ends.

        Raises:
            StoreLost: as from `get`.
            NotImplementedError: the store has no such rows.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say that it has contiguous rows")

    def kept(self) -> Iterable[Kept]:
        """What was there at opening, least recently used first: nothing, unless the store `survives`."""
        return ()

    def check_integrity(self) -> None:  # noqa: B027 - a store may have a single book
        """Compare the books with each other.

        Raises:
            AssertionError: naming the first contradiction.
        """

    @abstractmethod
    def close(self) -> None:
        """Give memory, files and threads back. What is durable stays."""
