"""Prefix sharing from a request's point of view: what it finds, what it waits for, what it leaves for others.

Contents are in the pool's blocks; `PendingPrefixes` knows those that a running request is about to compute. What belongs here:
which content a request may use or offer. Never: who runs, how many blocks are left.
"""

from collections.abc import Set
from itertools import islice

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
        usable = self._usable(request)
        if not usable or not self._pool.resident(request.block_hashes[0]):
            return []
        return self._pool.match(request.block_hashes[:usable], request.tokens)

    def warm(self, request: Request) -> bool:
        """Whether at least half of the request's prompt is resident: one look into the index."""
        usable = self._usable(request)
        return usable > 0 and self._pool.resident(request.block_hashes[(usable - 1) // 2])

    def is_cold(self, request: Request) -> bool:
        """Whether the request's first block is neither resident nor about to be computed."""
        if not request.block_hashes and not self._usable(request):
            return True
        key = request.block_hashes[0]
        return request.awaits is None and not self._pool.resident(key) and not self.pending.holds(key)

    def first_key(self, request: Request) -> bytes | None:
        """Key of the request's first block; None if it has none to look for."""
        return request.block_hashes[0] if request.block_hashes or self._usable(request) else None

    def are_cold(self, keys: Set[bytes]) -> bool:
        """Whether none of these is resident or about to be computed."""
        return self._pool.lacks_all(keys) and self.pending.lacks_all(keys)

    def awaits_pending(self, request: Request) -> bool:
        """Whether another request is about to compute the first block that this one lacks."""
        if request.awaits is not None and self.pending.holds(request.awaits):
            return True
        missing = next(
            (key for key in islice(request.block_hashes, self._usable(request)) if not self._pool.resident(key)), None
        )
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
        first, hashes = request.published, request.block_hashes
        fresh, parent = hashes[first:full], hashes[first - 1] if first else request.root
        self._pool.publish_all(
            request.block_table[first:full], fresh, request.tokens[first * size : full * size], parent
        )
        self.pending.resolve(fresh)
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
        return request.block_hashes[: self._usable(request)]

    def _usable(self, request: Request) -> int:
        """How many of the request's leading blocks may be shared; their keys are there."""
        tokens = len(request.tokens)
        of, usable = request.usable
        if of == tokens:
            return usable
        if not self._pool.caching or not request.reads_cache:  # which may change
            return 0
        if len(request.block_hashes) < tokens // self.block_size:
            request.extend_hashes(self.block_size)
        usable = (tokens - 1) // self.block_size
        request.usable = (tokens, usable)
        return usable
