"""Who owns which KV block of a device, and which content can be reused.

Contract. The pool hands out block *ids*; the memory behind them is the worker's. Each block is in exactly one state:

    free    nobody refers to it, no content              taken first, in runs of consecutive ids where possible
    used    `refs` sequences have it in their tables     never evicted
    cached  nobody refers to it, content kept by key     evicted least recently used first

A sequence may write only to blocks it alone holds and that have no key: a block gets its key when it is full, and from
then on nobody writes to it. `publish` may run when the step that fills the block has been *planned*: steps run in
order, and within a layer all KV is written before any attention reads, so whoever finds the key reads in time.

What belongs here: ownership, content addresses, eviction. Never: requests, policy, tensors, time.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scheduler.moves import Label


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
    """

    def __init__(self, blocks: int, block_size: int, *, caching: bool = True) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.caching = caching
        self._state = [_Block() for _ in range(blocks)]
        self._free = set(range(blocks))
        self._free_heap = list(range(blocks))  # may hold ids that left `_free`; skipped when popped
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._index: dict[bytes, int] = {}

    # --- counts ---

    @property
    def free(self) -> int:
        """Blocks without content or owner."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Blocks without owner whose content may be reused."""
        return len(self._cached)

    @property
    def available(self) -> int:
        """Blocks that `allocate` can give now."""
        return len(self._free) + len(self._cached)

    @property
    def used(self) -> int:
        """Blocks that at least one sequence refers to."""
        return self.blocks - self.available

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_size)

    # --- taking and giving back ---

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """Take `count` empty blocks for one sequence.

        Ids come sorted, so that runs of consecutive blocks stay runs in the block table (one strided read, one copy).

        Args:
            count: how many.
            after: the last block of the sequence's table; its neighbour is taken if free.

        Raises:
            OutOfBlocks: fewer are available; nothing was taken.
        """
        if count > self.available:
            raise OutOfBlocks(f"{count} blocks asked for, {self.available} available")
        taken: list[int] = []
        while after is not None and len(taken) < count and after + 1 in self._free:
            after += 1
            self._free.remove(after)
            taken.append(after)
        rest = sorted(self._take_any() for _ in range(count - len(taken)))
        for block_id in (*taken, *rest):
            self._state[block_id].refs = 1
        return taken + rest

    def _take_any(self) -> int:
        while self._free_heap:
            block_id = heapq.heappop(self._free_heap)
            if block_id in self._free:
                self._free.remove(block_id)
                return block_id
        block_id, _ = self._cached.popitem(last=False)
        self._forget(block_id)
        return block_id

    def share(self, block_ids: Iterable[int]) -> None:
        """Add one owner to each of these blocks, which `match` has just returned."""
        for block_id in block_ids:
            block = self._state[block_id]
            if block.refs == 0:
                del self._cached[block_id]
            block.refs += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Take one owner away from each block of a table, given in the table's order.

        Blocks with content stay cached; the tail is evicted before the head, because a prefix is worth more than what
        follows it.
        """
        for block_id in reversed(block_ids):
            block = self._state[block_id]
            if block.refs <= 0:
                raise IntegrityError(f"block {block_id} released more often than taken")
            block.refs -= 1
            if block.refs:
                continue
            if block.key is None:
                self._set_free(block_id)
            else:
                self._cached[block_id] = None

    def _set_free(self, block_id: int) -> None:
        self._free.add(block_id)
        heapq.heappush(self._free_heap, block_id)

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

    def label(self, block_id: int) -> Label:
        """The whole name of what a published block holds.

        Raises:
            IntegrityError: the block has no name.
        """
        block = self._state[block_id]
        if block.key is None:
            raise IntegrityError(f"block {block_id} has no name")
        return Label(block.key, block.tokens)

    def publish(self, block_id: int, key: bytes, tokens: Sequence[int]) -> None:
        """Name the content of a full block that one sequence holds. The first block of a content wins; others stay private."""
        if not self.caching or key in self._index:
            return
        block = self._state[block_id]
        if block.refs != 1 or block.key is not None:
            raise IntegrityError(f"block {block_id} published with {block.refs} owners and key {block.key!r}")
        block.key, block.tokens = key, tuple(tokens)
        self._index[key] = block_id

    def in_use(self, block_id: int) -> bool:
        """Whether a sequence refers to the block."""
        return self._state[block_id].refs > 0

    def shared(self, block_id: int) -> bool:
        """Whether more than one sequence refers to the block."""
        return self._state[block_id].refs > 1

    def forget(self, block_ids: Iterable[int]) -> None:
        """Make the contents of these used blocks unfindable, as they are in doubt. Owners keep their blocks.

        A block that another sequence reads as well keeps its name: if its content is bad, the last reader to fail
        takes it away.
        """
        for block_id in block_ids:
            if not self.shared(block_id):
                self._forget(block_id)

    def drop_contents(self) -> None:
        """Forget every content: what the blocks hold is in doubt (a step failed). Owners keep their blocks."""
        for block_id in list(self._index.values()):
            self._forget(block_id)
        while self._cached:
            self._set_free(self._cached.popitem()[0])

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
        for block_id, block in enumerate(self._state):
            self._check_block(block_id, block, refs[block_id])
        if len(self._index) != sum(block.key is not None for block in self._state):
            raise IntegrityError("the index and the keys of the blocks differ")

    def _check_block(self, block_id: int, block: _Block, refs: int) -> None:
        if block.refs != refs:
            raise IntegrityError(f"block {block_id} counts {block.refs} owners, {refs} tables hold it")
        states = (block_id in self._free, block_id in self._cached, refs > 0)
        if sum(states) != 1:
            raise IntegrityError(f"block {block_id} is (free, cached, used) = {states}")
        if block.key is None:
            if refs > 1 or states[1]:
                raise IntegrityError(f"block {block_id} has no content and (cached={states[1]}, owners={refs})")
        elif states[0] or self._index.get(block.key) != block_id or len(block.tokens) != self.block_size:
            raise IntegrityError(f"block {block_id} has a key that the index does not lead to")
