"""Who owns which KV block of a device, and which content can be reused.

Contract. The pool hands out block *ids*; the memory behind them is the worker's. Each block is in exactly one state:

    free    nobody refers to it, no content              may be taken
    used    `refs` sequences have it in their tables     never evicted
    cached  nobody refers to it, content kept by key     may be taken when the policy has given it up

A cached block is first the policy's (`scheduler.kv.eviction`). What the policy gives up is *loose*: still found by its key until
the block is taken. Where copies between tiers are to be few and long, some are always loose, so that blocks can be chosen
that lie together (`scheduler.kv.free_blocks`).

A sequence may write only to blocks it alone holds and that have no key: a block gets its key when it is full, and from
then on nobody writes to it. `publish` may run when the step that fills the block has been *planned*: steps run in
order, and within a layer all KV is written before any attention reads, so whoever finds the key reads in time.

What belongs here: ownership, content addresses, eviction. Never: requests, policy, tensors, time.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from scheduler.kv.eviction import Eviction, eviction_of
from scheduler.kv.free_blocks import FreeBlocks
from scheduler.types.block_hash import BlockKey


class OutOfBlocks(Exception):
    """More blocks were asked for than are free or cached. Callers check `available` first."""


class IntegrityError(AssertionError):
    """The pool's or the scheduler's books contradict each other: a defect, never a user's fault."""


@dataclass(slots=True)
class _Block:
    refs: int = 0
    key: bytes | None = None
    tokens: tuple[int, ...] = ()


class BlockPool:
    """The blocks of one device.

    Args:
        blocks: how many there are; ids are `0 .. blocks - 1`.
        block_size: tokens in one block.
        caching: whether contents are kept and shared.
        eviction: which of the contents nobody uses goes first; the pool's own from now on. Least recently used if None.

        choice: share of the unused blocks that is free or loose at any time. Blocks of a table then lie in longer runs, but
            contents go less in the policy's order: pays where a lower tier still has them. 0: as the policy says.

    Attributes:
        evictions: contents that had to give place so far.
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
        self.choice = choice
        self.evictions = 0
        self.eviction = eviction_of("lru", blocks) if eviction is None else eviction
        self._state = [_Block() for _ in range(blocks)]
        self._vacant = FreeBlocks(blocks)
        self._vacant.add(range(blocks))
        self._loose = 0  # vacant blocks with content
        self._index: dict[bytes, int] = {}

    # --- counts ---

    @property
    def free(self) -> int:
        """Blocks without content or owner."""
        return len(self._vacant) - self._loose

    @property
    def cached(self) -> int:
        """Blocks without owner whose content may be reused."""
        return len(self.eviction) + self._loose

    @property
    def available(self) -> int:
        """Blocks that `allocate` can give now."""
        return len(self._vacant) + len(self.eviction)

    @property
    def used(self) -> int:
        """Blocks that at least one sequence refers to."""
        return self.blocks - self.available

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_size)

    # --- taking and giving back ---

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """Take `count` empty blocks for one sequence, in as few runs of consecutive ids as can be (one strided read, one copy).

        Behind them some blocks are kept free where there are enough, so that the sequence's growth extends the last run.

        Args:
            count: how many.
            after: the last block of the sequence's table; its neighbours are taken if free.

        Raises:
            OutOfBlocks: fewer are available; nothing was taken.
        """
        if count > self.available:
            raise OutOfBlocks(f"{count} blocks asked for, {self.available} available")
        evicted: list[int] = []
        if count > 1 or after not in self._vacant.tails:  # else its room has the place
            evicted = self._loosen(count) if self.choice else self._evict(count)
        taken = self._vacant.take(count - len(evicted), after) + evicted
        for block_id in taken:
            block = self._state[block_id]
            block.refs = 1
            if block.key is not None:
                self._forget(block_id)
                self._loose -= 1
                self.evictions += 1
        return taken

    def _evict(self, count: int) -> list[int]:
        """What `count` blocks lack of open ones, in the policy's order; what is pinned only in need."""
        lacking = max(min(count - self._vacant.open, self.eviction.unpinned), count - len(self._vacant))
        evicted = sorted(self._index[self.eviction.victim()] for _ in range(lacking))
        self._loose += len(evicted)
        return evicted

    def _loosen(self, count: int) -> list[int]:
        """Have the policy give up what it takes to choose `count` blocks and their room from; what is pinned only in need."""
        spare = int(self.available * self.choice)
        lacking = count + self._vacant.room + spare - self._vacant.open
        if lacking < spare // 4:  # so that many are given up at once, and neighbours become one run in one go
            lacking = 0
        needed = max(min(lacking, self.eviction.unpinned), count - len(self._vacant))
        if needed > 0:
            self._vacant.add([self._index[self.eviction.victim()] for _ in range(needed)])
            self._loose += needed
        return []

    def share(self, block_ids: Iterable[int]) -> None:
        """Add one owner to each of these blocks, which `match` has just returned."""
        for block_id in block_ids:
            block = self._state[block_id]
            if block.refs == 0 and block.key is not None:
                self._pick_up(block_id, block.key)
            block.refs += 1

    def _pick_up(self, block_id: int, key: bytes) -> None:
        if key in self.eviction:
            self.eviction.remove(key)
        else:
            self._vacant.discard(block_id)
            self._loose -= 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Take one owner away from each block of a table, given in the table's order.

        Blocks with content stay cached; the tail is evicted before the head, because a prefix is worth more than what
        follows it.
        """
        unused: list[bytes] = []
        empty: list[int] = []
        tails = self._vacant.tails
        for block_id in block_ids:
            block = self._state[block_id]
            if block.refs <= 0:
                raise IntegrityError(f"block {block_id} released more often than taken")
            block.refs -= 1
            if block.refs:
                continue
            if block_id in tails:
                self._vacant.close(block_id)
            if block.key is None:
                empty.append(block_id)
            else:
                unused.append(block.key)
        self._vacant.add(empty)
        self.eviction.add(*unused)

    # --- content ---

    def match(self, keys: Sequence[bytes], tokens: Sequence[int]) -> list[int]:
        """The blocks of the longest resident prefix. The caller must `share` them before anything is allocated.

        Args:
            keys: keys of the sequence's leading full blocks.
            tokens: the sequence's ids; compared with what the blocks hold, so that a hash collision is a miss.
        """
        found: list[int] = []
        for index, key in enumerate(keys):
            block_id = self._index.get(key)
            if block_id is None:
                break
            begin = index * self.block_size
            if self._state[block_id].tokens != tuple(tokens[begin : begin + self.block_size]):
                break
            found.append(block_id)
        return found

    def resident(self, key: bytes) -> bool:
        """Whether some block holds this content."""
        return key in self._index

    def holder(self, key: bytes) -> int | None:
        """The block that holds the content of this name."""
        return self._index.get(key)

    def key_of(self, block_id: int) -> BlockKey:
        """The whole name of what a published block holds.

        Raises:
            IntegrityError: the block has no name.
        """
        block = self._state[block_id]
        if block.key is None:
            raise IntegrityError(f"block {block_id} has no name")
        return BlockKey(block.key, block.tokens)

    def publish(self, block_id: int, key: bytes, tokens: Sequence[int]) -> None:
        """Name the content of a full block that one sequence holds. The first block of a content wins; others stay private."""
        if not self.caching or key in self._index:
            return
        block = self._state[block_id]
        if block.refs != 1 or block.key is not None:
            raise IntegrityError(f"block {block_id} published with {block.refs} owners and key {block.key!r}")
        block.key, block.tokens = key, tuple(tokens)
        self._index[key] = block_id

    def pin(self, keys: Sequence[bytes], until: float) -> int:
        """As `Eviction.pin`; loose contents are the policy's again before."""
        for key in keys:
            block_id = self._index.get(key)
            if block_id is not None and not self.in_use(block_id) and key not in self.eviction:
                self._pick_up(block_id, key)
                self.eviction.add(key)
        return self.eviction.pin(keys, until)

    def in_use(self, block_id: int) -> bool:
        """Whether a sequence refers to the block."""
        return self._state[block_id].refs > 0

    def shared(self, block_id: int) -> bool:
        """Whether more than one sequence refers to the block."""
        return self._state[block_id].refs > 1

    def forget(self, block_ids: Iterable[int], copied: Collection[int] = ()) -> None:
        """Make the contents of these used blocks unfindable, as they are in doubt. Owners keep their blocks.

        A block that another sequence reads as well keeps its name: if its content is bad, the last reader to fail
        takes it away. One of the owners of those that are being `copied` is no reader.
        """
        for block_id in block_ids:
            if self._state[block_id].refs <= 1 + (block_id in copied):
                self._forget(block_id)

    def drop_contents(self) -> None:
        """Forget every content: what the blocks hold is in doubt (a step failed). Owners keep their blocks."""
        self._vacant.add([self._index[key] for key in self.eviction])
        self.eviction.clear()
        self._loose = 0
        for block_id in list(self._index.values()):
            self._forget(block_id)

    def _forget(self, block_id: int) -> None:
        block = self._state[block_id]
        if block.key is not None:
            del self._index[block.key]
        block.key, block.tokens = None, ()

    # --- invariants ---

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Compare the books with the block tables of all sequences.

        Raises:
            IntegrityError: naming the first contradiction.
        """
        refs = [0] * self.blocks
        for table in tables:
            if len(set(table)) != len(table):
                raise IntegrityError(f"a block stands twice in one table: {list(table)}")
            for block_id in table:
                refs[block_id] += 1
        vacant = self._vacant_ids()
        for block_id, block in enumerate(self._state):
            self._check_block(block_id, block, refs[block_id], block_id in vacant)
        if len(self._index) != sum(block.key is not None for block in self._state):
            raise IntegrityError("the index and the keys of the blocks differ")
        if len(self.eviction) != sum(key in self.eviction for key in self._index):
            raise IntegrityError("the policy knows contents that no block holds")
        if self._loose != sum(self._state[block_id].key is not None for block_id in vacant):
            raise IntegrityError(f"{self._loose} blocks are counted as loose")
        self.eviction.check_integrity()

    def _vacant_ids(self) -> set[int]:
        ids = list(self._vacant)
        if len(set(ids)) != len(ids) or len(ids) != len(self._vacant):
            raise IntegrityError(f"{len(self._vacant)} blocks count as vacant: {sorted(ids)}")
        if not all(self.in_use(tail) for tail in self._vacant.tails):
            raise IntegrityError(f"room is kept behind blocks that nobody uses: {list(self._vacant.tails)}")
        return set(ids)

    def _check_block(self, block_id: int, block: _Block, refs: int, vacant: bool) -> None:
        if block.refs != refs:
            raise IntegrityError(f"block {block_id} counts {block.refs} owners, {refs} tables hold it")
        states = (vacant, block.key is not None and block.key in self.eviction, refs > 0)
        if sum(states) != 1:
            raise IntegrityError(f"block {block_id} is (vacant, the policy's, used) = {states}")
        if block.key is None:
            if refs > 1:
                raise IntegrityError(f"block {block_id} has no content and {refs} owners")
        elif self._index.get(block.key) != block_id or len(block.tokens) != self.block_size:
            raise IntegrityError(f"block {block_id} has a key that the index does not lead to")
