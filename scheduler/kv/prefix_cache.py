"""Prefix sharing from a request's point of view: what it finds, what it waits for, what it leaves for others.

Contents are in the pool's blocks; `PendingPrefixes` knows those that a running request is about to compute. What belongs here:
which content a request may use or offer. Never: who runs, how many blocks are left.
"""

from scheduler.kv.block_pool import BlockPool
from scheduler.kv.pending_prefixes import PendingPrefixes
from scheduler.types.request import Request


class PrefixCache:
    """Finds and publishes contents of one `BlockPool`; does nothing if the pool keeps none."""

    def __init__(self, pool: BlockPool) -> None:
        self.block_size = pool.block_size
        self._pool = pool
        self.pending = PendingPrefixes()

    def hits(self, request: Request) -> list[int]:
        """Resident blocks of the request's prefix, valid until anything is allocated. Takes none of them."""
        return self._pool.match(self.usable_hashes(request), request.tokens)

    def warm(self, request: Request) -> bool:
        """Whether at least half of the request's prompt is resident: one look into the index."""
        keys = self.usable_hashes(request)
        return bool(keys) and self._pool.resident(keys[(len(keys) - 1) // 2])

    def awaits_pending(self, request: Request) -> bool:
        """Whether another request is about to compute the first block that this one lacks."""
        if request.awaits is not None and self.pending.holds(request.awaits):
            return True
        missing = next((key for key in self.usable_hashes(request) if not self._pool.resident(key)), None)
        request.awaits = missing if missing is not None and self.pending.holds(missing) else None
        return request.awaits is not None

    def maker_of(self, request: Request) -> str:
        """Id of the request that computes what this one awaits; empty if it awaits nothing."""
        return "" if request.awaits is None else self.pending.maker(request.awaits)

    def announce(self, request: Request, hits: int) -> None:
        """The request starts to compute what follows its first `hits` blocks."""
        if self._pool.caching:
            self.pending.add(request.request_id, request.block_hashes[hits:])

    def publish(self, request: Request) -> bool:
        """Publish the blocks that are full of known tokens with planned KV; whether there were any."""
        size = self._pool.block_size
        end = (request.published + 1) * size  # of the first block that has no key yet
        if request.computed < end or len(request.tokens) < end or not self._pool.caching:
            return False
        full = min(request.computed, len(request.tokens)) // size
        request.extend_hashes(size)
        for index in range(request.published, full):
            tokens = request.tokens[index * size : (index + 1) * size]
            parent = request.block_hashes[index - 1] if index else request.root
            self._pool.publish(request.block_table[index], request.block_hashes[index], tokens, parent)
            self.pending.resolve(request.block_hashes[index])
        request.published = full
        return True

    def was_evicted(self, request: Request) -> bool:
        """Whether the first block that a request, just admitted, did not find had been there before others needed the room."""
        missing = self.usable_hashes(request)[request.computed // self._pool.block_size :]
        return bool(missing) and self._pool.evicted.holds(missing[0])

    def on_lookup(self, request: Request) -> list[bytes]:
        """Tell the eviction policy what the request, just admitted, can use and what was there. Returns the keys."""
        keys = self.usable_hashes(request)
        self._pool.eviction.on_lookup(keys, request.computed // self._pool.block_size)
        return keys

    def pin(self, request: Request, until: float) -> list[bytes]:
        """Pin the full blocks of its prompt until then, as far as the limit allows. Returns their keys."""
        if not self._pool.caching:
            return []
        request.extend_hashes(self._pool.block_size)
        self._pool.pin(request.block_hashes, until)
        return request.block_hashes

    def usable_hashes(self, request: Request) -> list[bytes]:
        """Keys of the request's blocks that may be shared. The last token is always computed: its logits are needed."""
        if not self._pool.caching or not request.reads_cache:
            return []
        request.extend_hashes(self._pool.block_size)
        return request.block_hashes[: (len(request.tokens) - 1) // self._pool.block_size]
