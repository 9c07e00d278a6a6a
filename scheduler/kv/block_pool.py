"""Who owns which KV block of a device, and which content can be reused.

Contract. The pool hands out block *ids*; the memory behind them is the worker's. Each block is in exactly one state:

    free    nobody refers to it, no content              may be taken
    used    `refs` sequences have it in their tables     never evicted
    cached  nobody refers to it, content kept by key     may be taken once the policy has given it up

Which of the cached blocks is taken, and what is given up for it, is decided by `UnusedBlocks`.

A sequence may write only to blocks that it alone holds and that have no key: a block gets its key when it is full, and from
then on nobody writes to it. `publish` may run as soon as the step that fills the block has been *planned*: steps run in
order, and within a layer all KV is written before any attention reads it, so whoever finds the key reads in time.

What belongs here: ownership, content addresses. Never: requests, policy, tensors, time.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence, Set

from scheduler.kv.block_journal import BlockJournal
from scheduler.kv.eviction import Eviction, eviction_of
from scheduler.kv.gone_blocks import GoneBlocks
from scheduler.kv.unused_blocks import UnusedBlocks
from scheduler.types.block_hash import BlockKey
from scheduler.types.transfers import DEVICE


class OutOfBlocks(Exception):
    """More blocks were asked for than are free or cached. Callers check `available` first."""


class IntegrityError(AssertionError):
    """The books of the pool or the scheduler contradict each other: a defect, never a user's fault."""


class BlockPool:
    """The blocks of one device.

    Args:
        blocks: number of blocks; ids are `0 .. blocks - 1`.
        block_size: tokens in one block.
        caching: whether contents are kept and shared.
        eviction: decides which unused content goes first; belongs to the pool from now on. Least recently used if None.
        choice: share of the unused blocks that is kept free, some of them lazily evicted. Blocks of a table then lie in longer
            runs, but contents are evicted less strictly in the policy's order: this pays if a lower tier still has them. 0:
            only as the policy says.

    Attributes:
        evictions: contents evicted so far.
        evicted: the latest of them.
        available: number of blocks that `allocate` can give now.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int,
        *,
        caching: bool = True,
        eviction: Eviction | None = None,
        choice: float = 0.0,
    ) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.caching = caching
        self.evictions = 0
        self.available = blocks
        self.evicted = GoneBlocks(blocks)
        self._journal: BlockJournal | None = None
        self.eviction = eviction_of("lru", blocks) if eviction is None else eviction
        self._refs = [0] * blocks  # owners of each
        self._keys: list[bytes | None] = [None] * blocks
        self._tokens: list[tuple[int, ...]] = [()] * blocks  # that it holds under its key
        self._index: dict[bytes, int] = {}
        self._unused = UnusedBlocks(blocks, self._index, self.eviction, choice)

    # --- counts ---

    @property
    def free(self) -> int:
        """Number of blocks without content or owner."""
        return self._unused.empty

    @property
    def cached(self) -> int:
        """Number of blocks without an owner whose content may be reused."""
        return self._unused.cached

    @property
    def used(self) -> int:
        """Number of blocks that at least one sequence refers to."""
        return self.blocks - self.available

    def blocks_for(self, tokens: int) -> int:
        """Number of blocks that hold this many tokens."""
        return -(-tokens // self.block_size)

    # --- taking and giving back ---

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """Take `count` empty blocks for one sequence, in as few runs of consecutive ids as possible (one strided read, one copy).

        If there are enough, some blocks after them are reserved, so that the sequence's growth extends the last run.

        Args:
            count: number of blocks.
            after: the last block of the sequence's table; the blocks after it are taken if free.

        Raises:
            OutOfBlocks: fewer are available; none was taken.
        """
        if count > self.available:
            raise OutOfBlocks(f"{count} blocks asked for, {self.available} available")
        taken = self._unused.take(count, after)
        self.available -= count
        refs, keys, gone = self._refs, self._keys, list[bytes]()
        for block_id in taken:
            refs[block_id] = 1
            key = keys[block_id]
            if key is not None:
                gone.append(key)
                del self._index[key]
                keys[block_id], self._tokens[block_id] = None, ()
        if gone:
            self._tell_removed(gone)
            self.evicted.add(gone)
            self._unused.gave_up(len(gone))
            self.evictions += len(gone)
        return taken

    def share(self, block_ids: Iterable[int]) -> None:
        """Add an owner to each of these blocks, which `match` has just returned, or to which nobody writes while it has others."""
        refs, keys = self._refs, self._keys
        for block_id in block_ids:
            key = keys[block_id]
            if refs[block_id] == 0 and key is not None:
                self._unused.pick_up(key)
                self.available -= 1
            refs[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Remove an owner from each block of a table, given in the table's order.

        Blocks with content stay cached; the tail is evicted before the head, because a prefix is worth more than what
        follows it.

        Raises:
            IntegrityError: a block has no owner.
        """
        refs, keys = self._refs, self._keys
        released: list[int] = []
        for block_id in block_ids:
            owners = refs[block_id] - 1
            if owners < 0:
                raise IntegrityError(f"block {block_id} released more often than taken")
            refs[block_id] = owners
            if not owners:
                released.append(block_id)
        kept = [key for block_id in released if (key := keys[block_id]) is not None]
        empty = [block_id for block_id in released if keys[block_id] is None] if len(kept) < len(released) else []
        self._unused.put_back(released, empty, kept)
        self.available += len(released)

    # --- content ---

    def match(self, keys: Sequence[bytes], tokens: Sequence[int]) -> list[int]:
        """The blocks of the longest resident prefix. The caller must `share` them before anything is allocated.

        Args:
            keys: keys of the sequence's leading full blocks.
            tokens: the sequence's token ids; compared with what the blocks hold, so that a hash collision is a miss.
        """
        found: list[int] = []
        for index, key in enumerate(keys):
            block_id = self._index.get(key)
            if block_id is None:
                break
            begin = index * self.block_size
            if self._tokens[block_id] != tuple(tokens[begin : begin + self.block_size]):
                break
            found.append(block_id)
        return found

    def contents(self) -> Iterator[bytes]:
        """All contents by key: those in use first, then those that would be evicted last (with LRU, what was used last)."""
        used = {key for key, block_id in self._index.items() if self.in_use(block_id)}
        yield from (key for key in self._index if key in used)
        yield from reversed(list(self.eviction))
        yield from (key for key in self._index if key not in used and key not in self.eviction)  # lazily evicted

    def resident(self, key: bytes) -> bool:
        """Whether some block holds this content."""
        return key in self._index

    def lacks_all(self, keys: Set[bytes]) -> bool:
        """Whether no block holds any of these contents."""
        return self._index.keys().isdisjoint(keys)

    def holder(self, key: bytes) -> int | None:
        """The block that holds the content with this key, if any."""
        return self._index.get(key)

    def key_of(self, block_id: int) -> BlockKey:
        """The full key of what a published block holds, token ids included.

        Raises:
            IntegrityError: the block has no key.
        """
        key = self._keys[block_id]
        if key is None:
            raise IntegrityError(f"block {block_id} has no key")
        return BlockKey(key, self._tokens[block_id])

    def publish(self, block_id: int, key: bytes, tokens: Sequence[int], parent: bytes | None = None) -> None:
        """Give a full block that one sequence holds its key. The first block with a content wins; others stay private.

        Args:
            block_id: the block.
            key: of its content.
            tokens: the ids in it.
            parent: key of what precedes them, for the journal.

        Raises:
            IntegrityError: the block has a key already, or not exactly one owner.
        """
        self.publish_all([block_id], [key], tokens, parent)

    def publish_all(
        self, block_ids: Sequence[int], keys: Sequence[bytes], tokens: Sequence[int], parent: bytes | None = None
    ) -> None:
        """`publish` blocks that follow each other: `tokens` are the ids in all of them, `parent` is the key of what precedes."""
        if not self.caching:
            return
        index, refs, held, contents, size = self._index, self._refs, self._keys, self._tokens, self.block_size
        begin = 0
        for block_id, key in zip(block_ids, keys, strict=True):
            if key not in index:
                if refs[block_id] != 1 or held[block_id] is not None:
                    raise IntegrityError(
                        f"block {block_id} published with {refs[block_id]} owners and key {held[block_id]!r}"
                    )
                held[block_id] = key
                contents[block_id] = tuple(tokens[begin : begin + size])
                index[key] = block_id
                if self._journal is not None:
                    self._journal.stored(DEVICE, key, size, parent)
            parent = key
            begin += size

    def pin(self, keys: Sequence[bytes], until: float) -> int:
        """`Eviction.pin`, after handing lazily evicted contents back to the policy."""
        self._unused.readmit(key for key in keys if key in self._index and not self.in_use(self._index[key]))
        return self.eviction.pin(keys, until)

    def in_use(self, block_id: int) -> bool:
        """Whether a sequence refers to the block."""
        return self._refs[block_id] > 0

    def shared(self, block_id: int) -> bool:
        """Whether more than one sequence refers to the block."""
        return self._refs[block_id] > 1

    def occupancy(self) -> bytearray:
        """For each block 0 if it is free, 1 if it is cached, 2 if it is used. One pass over all blocks."""
        return bytearray([2 if refs else key is not None for refs, key in zip(self._refs, self._keys, strict=True)])

    def forget(self, block_ids: Iterable[int], copied: Collection[int] = ()) -> None:
        """Make the contents of these used blocks unfindable, as they are in doubt. Owners keep their blocks.

        A block that another sequence reads as well keeps its key: if its content is bad, the last reader to fail removes
        it. Of the owners of a block that is being `copied`, one is not a reader.
        """
        for block_id in block_ids:
            key = self._keys[block_id]
            if key is not None and self._refs[block_id] <= 1 + (block_id in copied):
                self._forget(block_id, key)

    def drop(self, keys: Iterable[bytes]) -> None:
        """Forget these contents where no sequence has them: they are to come from somewhere else."""
        for key in keys:
            block_id = self._index.get(key)
            if block_id is not None and not self.in_use(block_id):
                self.share([block_id])
                self._forget(block_id, key)
                self.release([block_id])

    def drop_contents(self) -> None:
        """Forget every content: what the blocks hold is in doubt (a step failed). Owners keep their blocks."""
        self._unused.drop_contents()
        for key, block_id in list(self._index.items()):
            self._forget(block_id, key)

    def _forget(self, block_id: int, key: bytes) -> None:
        del self._index[key]
        self._keys[block_id], self._tokens[block_id] = None, ()
        self._tell_removed((key,))

    def _tell_removed(self, keys: Iterable[bytes]) -> None:
        if self._journal is not None:
            for key in keys:
                self._journal.removed(DEVICE, key)

    def publish_to(self, journal: BlockJournal | None) -> None:
        """Tell the journal which contents are there, and from now on which come and go; None: tell nobody."""
        self._journal = journal
        if journal is None:
            return
        for key, block_id in self._index.items():
            journal.stored(DEVICE, key, len(self._tokens[block_id]))

    # --- invariants ---

    def check_integrity(self, tables: Iterable[Sequence[int]], copied: Iterable[Sequence[int]] = ()) -> None:
        """Compare the books with the block tables of all sequences, and with blocks that are only copied from.

        Raises:
            IntegrityError: names the first contradiction.
        """
        refs = [0] * self.blocks
        sources = list(copied)
        several = {block_id for table in sources for block_id in table}
        for table in (*tables, *sources):
            if len(set(table)) != len(table):
                raise IntegrityError(f"a block appears twice in one table: {list(table)}")
            for block_id in table:
                refs[block_id] += 1
        for block_id in range(self.blocks):
            self._check_block(block_id, refs[block_id], copied=block_id in several)
        if len(self._index) != sum(key is not None for key in self._keys):
            raise IntegrityError("the index and the keys of the blocks differ")
        if self.available != len(self._unused):
            raise IntegrityError(f"{self.available} blocks count as available, {len(self._unused)} are")
        try:
            self._unused.check_integrity({each: self._keys[each] for each in range(self.blocks) if not refs[each]})
        except AssertionError as error:
            raise IntegrityError(*error.args) from error

    def _check_block(self, block_id: int, refs: int, *, copied: bool) -> None:
        key = self._keys[block_id]
        if self._refs[block_id] != refs:
            raise IntegrityError(f"block {block_id} counts {self._refs[block_id]} owners, {refs} tables hold it")
        if key is None:
            if refs > 1 and not copied:
                raise IntegrityError(f"block {block_id} has no content and {refs} owners")
        elif self._index.get(key) != block_id or len(self._tokens[block_id]) != self.block_size:
            raise IntegrityError(f"block {block_id} has a key that the index does not lead to")
