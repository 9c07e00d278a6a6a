"""What every tier below the device has in common: blocks go in and come out by the name of their content."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from scheduler.types.block_hash import BlockKey
from scheduler.types.transfers import TierChanges

if TYPE_CHECKING:
    from torch import Tensor  # a keeper's process has none


class StoreLost(Exception):
    """The store failed as a whole (disk full, permission gone, device error) and must not be used any more."""


class StoreRefused(Exception):
    """The store cannot be opened; the sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Blocks as bytes: rows `ids` of `pool`.

    Attributes:
        pool: uint8 [n, block bytes], contiguous; in host memory, or a GPU's for a store that is `device_visible`.
        ids: one row for each block, in the order of its keys. Neighbours may be copied together.
    """

    pool: "Tensor | npt.NDArray[np.uint8]"
    ids: Sequence[int]

    @property
    def array(self) -> "npt.NDArray[np.uint8]":
        """The pool, which is in host memory, as numpy sees it."""
        return self.pool if isinstance(self.pool, np.ndarray) else self.pool.numpy()


@dataclass(frozen=True, slots=True)
class Lent:
    """Contents where a store holds them: to be read only, and only inside the `with` that gave them.

    Attributes:
        block_keys: of the contents asked for, those that are there, in the order asked.
        rows: one for each.
    """

    block_keys: list[BlockKey]
    rows: Rows


class Kept(NamedTuple):
    """A content that a store held when it was opened; `size` is the bytes it takes there."""

    block_key: BlockKey
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a store can do beyond keeping blocks. Code that uses a store asks for these, never for its class.

    Attributes:
        contiguous_rows: its blocks are rows of one range of host memory, which `lend` gives out without a copy.
        device_visible: `put` and `get` take rows of a GPU's pool. For other stores such rows are copied through host memory.
        shared: other processes put, get and drop at the same time: contents come and go without our doing. Then the store evicts,
            and says in `changes` what came and went; it is told to drop only what must be read by nobody.
        survives: what it keeps is there for the next process, which finds it in `kept`.
        read_only: what others put there can be read, and nothing is saved there.
        returns: once it is lost, `check` tries to reach it again; when that succeeds, `kept` says what is there.
    """

    contiguous_rows: bool = False
    device_visible: bool = False
    shared: bool = False
    survives: bool = False
    returns: bool = False
    read_only: bool = False


class BlockStore(ABC):
    """A place that keeps copies of KV blocks.

    Contract. The store owns its memory and decides where in it a block lies; the caller owns the rows it passes and leaves them
    unchanged until the call returns. The *scheduler* decides what is kept: a store that is not `shared` never evicts, it is only
    asked to `drop`, and it is never given more than its size. A content is there from the return of `put` until `drop` (or until
    `get` finds it damaged); it is never served half-written or damaged. Calls may come from several threads at once; for one
    content, `put` and `drop`
    never overlap another call, and reads may overlap each other. No method but `get` and `put` takes long.

    Raises (from `put` and `get`):
        StoreLost: nothing it holds can be trusted or reached any more; all later calls raise it too, until a store that `returns`
            has been reached again.

    Attributes:
        capabilities: what it can do beyond that.
        save_copies: ranges of memory that `put` has copied so far, neighbours together; 0 if each block goes by itself.
        load_copies: the same for `get`.
    """

    capabilities = Capabilities()
    save_copies: int = 0
    load_copies: int = 0

    @abstractmethod
    def put(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[int]:
        """Keep these blocks. Returns the bytes that each takes; 0 if it was not kept. One that is there already stays as it is."""

    @abstractmethod
    def get(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[bool]:
        """Fill the rows. Returns False where the content is not there (any more); such a row's bytes are undefined."""

    @abstractmethod
    def drop(self, keys: Iterable[bytes]) -> None:
        """Forget the contents of these hashes; unknown ones are ignored."""

    def pin(self, keys: Sequence[bytes], until: float) -> None:  # noqa: B027 - only a store that is `shared` evicts
        """Keep these contents, present or yet to come, until then (`time.monotonic`), as far as there is room for pins.

        Raises:
            StoreLost: as from `put`.
        """

    def on_lookup(self, keys: Sequence[bytes]) -> None:  # noqa: B027 - only a store that is `shared` evicts
        """A new request can use these contents, which form a prefix: eviction may learn from that.

        Raises:
            StoreLost: as from `put`.
        """

    def lend(self, block_keys: Sequence[BlockKey]) -> AbstractContextManager[Lent]:
        """Those of these contents that are there, to be read in place. For stores with `contiguous_rows`.

        A content that is dropped meanwhile is gone for everyone else, but its bytes stay until the last `with` ends.

        Raises:
            StoreLost: as from `get`.
            NotImplementedError: the store has no such rows.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say that it has contiguous rows")

    def expect_newest_first(self) -> None:  # noqa: B027 - only an order that survives matters
        """From now on, what is put was used before what was put until then: `kept` shall say so to the next process."""

    def kept(self) -> Iterable[Kept]:
        """What was there when the store was opened, least recently used first: nothing, unless the store `survives`."""
        return ()

    def changes(self) -> TierChanges:
        """What came and went since the last call, or since `kept` was read: for a store that is `shared`. It is asked for every
        second, and a load may have to wait for the answer, so it should take no longer than reading one block.

        What we put and dropped ourselves may be in it. A content that is there now is never only among those that went. What is
        left out does no harm: it is not found, or not there when it is read.

        Raises:
            StoreLost: as from `get`.
        """
        return TierChanges([], [])

    def on_changes(self, tell: Callable[[], None]) -> None:  # noqa: B027 - most stores are asked every second
        """Call this, from any thread, as soon as `changes` has something to say, or the store is lost: then it is asked at once."""

    def check(self) -> None:  # noqa: B027 - most stores cannot go away
        """See whether the store can still be reached, though nothing is transferred. May take as long as `get`.

        Raises:
            StoreLost: it cannot.
        """

    def check_integrity(self) -> None:  # noqa: B027 - a store may have a single book
        """Compare the store's books with each other.

        Raises:
            AssertionError: naming the first contradiction.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back memory, files and threads. What is durable stays."""
