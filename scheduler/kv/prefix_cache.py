"""Prefix sharing from a request's point of view: what it finds, what it waits for, what it leaves for others.

Contents lie in the pool's blocks; `Promises` knows those that a running request is about to compute. What belongs here:
which content a request may use or offer. Never: who runs, how many blocks are left.
"""

from scheduler.kv.block_pool import BlockPool
from scheduler.kv.pending_prefixes import Promises
from scheduler.types.request import Request


class PrefixCache:
    """Reads and names contents of one `BlockPool`; does nothing where that pool keeps none."""

    def __init__(self, pool: BlockPool) -> None:
        self.block_size = pool.block_size
        self._pool = pool
        self.promises = Promises()

    def hits(self, request: Request) -> list[int]:
        """Resident blocks of the request's prefix; `BlockPool.match` says for how long. Takes nothing."""
        return self._pool.match(self.usable_keys(request), request.tokens)

    def warm(self, request: Request) -> bool:
        """Whether half of the request's prompt, or more, is resident: one look into the index."""
        keys = self.usable_keys(request)
        return bool(keys) and self._pool.resident(keys[(len(keys) - 1) // 2])

    def awaits_promise(self, request: Request) -> bool:
        """Whether the first block the request lacks is about to be computed by another one."""
        if request.awaits is not None and self.promises.holds(request.awaits):
            return True
        missing = next((key for key in self.usable_keys(request) if not self._pool.resident(key)), None)
        request.awaits = missing if missing is not None and self.promises.holds(missing) else None
        return request.awaits is not None

    def promise(self, request: Request, hits: int) -> None:
        """The request starts to compute what follows its first `hits` blocks."""
        if self._pool.caching:
            self.promises.make(request.request_id, request.keys[hits:])

    def publish(self, request: Request) -> bool:
        """Name the blocks that are full of known tokens with planned KV. Whether there was any."""
        size = self._pool.block_size
        end = (request.published + 1) * size  # of the first block that has no name yet
        if request.computed < end or len(request.tokens) < end or not self._pool.caching:
            return False
        full = min(request.computed, len(request.tokens)) // size
        request.extend_keys(size)
        for index in range(request.published, full):
            tokens = request.tokens[index * size : (index + 1) * size]
            self._pool.publish(request.block_table[index], request.keys[index], tokens)
            self.promises.keep(request.keys[index])
        request.published = full
        return True

    def asked(self, request: Request) -> list[bytes]:
        """Tell eviction what the request, just admitted, can use and what was there. Returns the keys."""
        keys = self.usable_keys(request)
        self._pool.eviction.asked(keys, request.computed // self._pool.block_size)
        return keys

    def pin(self, request: Request, until: float) -> list[bytes]:
        """Keep the full blocks of its prompt until then, as far as pins go. Returns their keys."""
        if not self._pool.caching:
            return []
        request.extend_keys(self._pool.block_size)
        self._pool.pin(request.keys, until)
        return request.keys

    def usable_keys(self, request: Request) -> list[bytes]:
        """Keys of the blocks that may be shared. The last token is always computed: its logits are needed."""
        if not self._pool.caching or not request.reads_cache:
            return []
        request.extend_keys(self._pool.block_size)
        return request.keys[: (len(request.tokens) - 1) // self._pool.block_size]
