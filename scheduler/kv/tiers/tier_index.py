"""What one tier below the device keeps, by key: what is there, what is on its way, what is evicted.

The tier itself (`engine.kv_store`) only does what it is told; the books are here, so that a plan knows without asking what can be
loaded. An entry is *arriving* from the moment its transfer is planned until the result is in, *held* while a transfer reads it, and
may be evicted at any other time.

The books of a tier that other processes *share* are what is known of it: to evict is to forget where a content is, and the tier
keeps it for the others, as long as it likes. What others put and drop there is entered as it becomes known. It is told to drop only
what must be read by nobody.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from scheduler.kv.block_journal import BlockJournal
from scheduler.kv.block_pool import IntegrityError
from scheduler.kv.eviction import Eviction
from scheduler.types.block_hash import BlockKey
from scheduler.types.transfers import Pin, TierChanges


@dataclass(slots=True)
class _Content:
    token_ids: tuple[int, ...]
    size: int
    arrived: bool = False
    readers: int = 0
    doomed: bool = False  # to be forgotten as soon as nobody reads or writes it
    in_doubt: bool = False  # then the tier has to drop it

    @property
    def evictable(self) -> bool:
        return self.arrived and not self.readers and not self.doomed


class TierIndex:
    """The books of one tier.

    Args:
        name: the tier's, in metrics, log lines and transfers.
        capacity: bytes it may hold.
        block_bytes: most bytes of one content.
        policy: decides which content is evicted first; not shared with another tier.
        survives: whether what it keeps is there for the next process.
        shared: whether others put and drop there, too.
        read_only: whether only others put there.

    Attributes:
        used: bytes taken, those of contents on their way included.
        evictions: contents evicted so far.
    """

    def __init__(
        self,
        name: str,
        capacity: int,
        block_bytes: int,
        policy: Eviction,
        *,
        survives: bool = False,
        shared: bool = False,
        read_only: bool = False,
    ) -> None:
        self.name = name
        self.capacity = capacity
        self.block_bytes = block_bytes
        self.survives = survives
        self.shared = shared
        self.read_only = read_only
        self.used = 0
        self.evictions = 0
        self._journal: BlockJournal | None = None
        self._policy = policy
        self._entries: dict[bytes, _Content] = {}
        self._evictable = 0  # bytes
        self._drops: list[bytes] = []
        self._pins: list[Pin] = []  # of which the tier, where others evict, has to be told
        self._lookups: list[Sequence[bytes]] = []  # the same

    def __len__(self) -> int:
        return len(self._entries)

    def finds(self, block_key: BlockKey) -> bool:
        """Whether the content can be read now."""
        return self.key_of(block_key.hash) == block_key

    def readable(self, key: bytes) -> bool:
        """Whether a content with this hash can be read now; `finds` compares the token ids as well."""
        entry = self._entries.get(key)
        return entry is not None and entry.arrived and not entry.doomed

    def key_of(self, key: bytes) -> BlockKey | None:
        """The full key of a content that can be read now; None if it cannot."""
        return BlockKey(key, self._entries[key].token_ids) if self.readable(key) else None

    def knows(self, key: bytes) -> bool:
        """Whether the content is there or on its way."""
        return key in self._entries

    def size_of(self, key: bytes) -> int:
        """Bytes that the content takes; 0 if it is neither there nor on its way."""
        entry = self._entries.get(key)
        return 0 if entry is None else entry.size

    def contents(self) -> Iterator[bytes]:
        """What can be read now: what is in use first, then what would be evicted last (with LRU, what was used last)."""
        yield from (key for key in self._entries if key not in self._policy and self.readable(key))
        yield from reversed(list(self._policy))

    def publish_to(self, journal: BlockJournal | None) -> None:
        """Tell the journal which contents are there, and from now on which come and go; None: tell nobody."""
        self._journal = journal
        for key, entry in self._entries.items():
            if journal is not None and entry.arrived:
                journal.stored(self.name, key, len(entry.token_ids))

    def lost(self) -> None:
        """The tier failed: nothing is there any more."""
        if self._journal is not None:
            for key in self._entries:
                self._journal.removed(self.name, key)

    # --- what the eviction policy learns ---

    def on_lookup(self, keys: Sequence[bytes]) -> None:
        """A new request can use these contents, which form a prefix."""
        found = next((place for place, key in enumerate(keys) if not self.readable(key)), len(keys))
        self._policy.on_lookup(keys, found)
        if self.shared and self._policy.learns and keys:
            self._lookups.append(list(keys))

    def pin(self, keys: Sequence[bytes], until: float) -> None:
        """Keep these contents until then, in seconds of the caller's clock, as far as the limit on pins allows."""
        self._policy.pin(keys, until)
        if self.shared:
            self._pins.append(Pin(list(keys), until))

    def expire(self, now: float) -> None:
        """End the pins whose time has come."""
        self._policy.expire(now)

    # --- contents come ---

    def seed(self, block_key: BlockKey, size: int) -> None:
        """Enter a content that is there without our doing; least recently used first. It is dropped if there is no room."""
        if self.reserve(block_key):
            self.arrived([block_key.hash], [size])
        elif block_key.hash not in self._entries:
            self._drop_own(block_key.hash)

    def reserve(self, block_key: BlockKey) -> bool:
        """Make room for a content that will arrive; False if there is none even without everything evictable."""
        size = self.block_bytes
        if block_key.hash in self._entries or self.used - self._evictable + size > self.capacity:
            return False
        while self.used + size > self.capacity:
            self._evict()
        self._entries[block_key.hash] = _Content(block_key.token_ids, size)
        self.used += size
        return True

    def arrived(self, keys: Sequence[bytes], sizes: Sequence[int]) -> None:
        """These contents, in the order of their prefix, are there and take `sizes` bytes; 0: the content did not arrive."""
        for key, size in zip(keys, sizes, strict=True):
            entry = self._entries[key]
            self.used += size - entry.size
            entry.size, entry.arrived = size, size > 0
            if not size:
                self._remove(key)
                self._drop_own(key)  # a part of it may be there all the same
            elif self._journal is not None:
                self._journal.stored(self.name, key, len(entry.token_ids))
        self._settle([key for key, size in zip(keys, sizes, strict=True) if size])

    def touch(self, keys: Sequence[bytes]) -> None:
        """These contents, which form a prefix, were used elsewhere: they are no longer the oldest."""
        unused = [key for key in keys if key in self._entries and self._entries[key].evictable]
        self._policy.remove(*unused)
        self._policy.add(*unused)

    # --- contents are read ---

    def hold(self, keys: Sequence[bytes]) -> None:
        """A transfer begins to read these contents, which can be read now."""
        for key in keys:
            entry = self._entries[key]
            if entry.evictable:
                self._policy.remove(key)
                self._evictable -= entry.size
            entry.readers += 1

    def release(self, keys: Sequence[bytes]) -> None:
        """The transfer that reads these contents has ended."""
        for key in keys:
            self._entries[key].readers -= 1
        self._settle(keys)

    # --- contents go ---

    def forget(self, keys: Iterable[bytes]) -> None:
        """These contents are in doubt: no longer found from now on, and dropped."""
        for key in keys:
            if key in self._entries:
                self._entries[key].in_doubt = True
                self._doom(key)

    def vanished(self, keys: Iterable[bytes]) -> None:
        """These contents cannot be read any more: no longer found from now on. What is on its way is not among them."""
        for key in keys:
            if key in self._entries and self._entries[key].arrived:
                self._entries[key].in_doubt |= not self.shared  # a part of it may be there all the same
                self._doom(key)

    def _doom(self, key: bytes) -> None:
        entry = self._entries[key]
        if entry.evictable:
            self._policy.remove(key)
            self._evictable -= entry.size
        entry.doomed = True
        self._bury(key)

    def _bury(self, key: bytes) -> None:
        """Take a doomed entry out of the books, unless somebody still reads or writes it."""
        entry = self._entries[key]
        if entry.doomed and entry.arrived and not entry.readers:
            self._remove(key)
            if entry.in_doubt:
                self._drops.append(key)

    def follow(self, changes: TierChanges) -> None:
        """Others have put and dropped contents."""
        self.vanished(changes.went)
        for block_key, size in changes.came:
            self.seed(block_key, size)

    def reset(self) -> None:
        """The tier was lost and is back: whatever was known of it is no longer so. No transfer may concern it."""
        self.used = self._evictable = 0
        self._entries.clear()
        self._drops.clear()
        self._pins.clear()
        self._lookups.clear()
        self._policy.clear()

    def _drop_own(self, key: bytes) -> None:
        """Have it dropped, unless it may be somebody else's."""
        if not self.shared:
            self._drops.append(key)

    def take_drops(self) -> list[bytes]:
        """Keys that the tier has to forget before anything else is put there; each is returned once."""
        drops, self._drops = self._drops, []
        return drops

    def take_pins(self) -> list[Pin]:
        """Pins that the tier has to be told of; each is returned once."""
        pins, self._pins = self._pins, []
        return pins

    def take_lookups(self) -> list[Sequence[bytes]]:
        """What new requests asked for, of which the tier has to be told; each is returned once."""
        lookups, self._lookups = self._lookups, []
        return lookups

    def pin_again(self, pins: Iterable[Pin]) -> None:
        """Return pins that a transfer took but never carried out."""
        self._pins += pins

    def drop_again(self, keys: Iterable[bytes]) -> None:
        """Return drops that a transfer took but never carried out; contents that have come back since are kept."""
        self._drops += [key for key in keys if key not in self._entries]

    @property
    def has_word(self) -> bool:
        """Whether the tier has something to forget, or is to be told of pins or lookups."""
        return bool(self._drops or self._pins or self._lookups)

    def _evict(self) -> None:
        key = self._policy.victim()
        self._evictable -= self._entries[key].size
        self._remove(key)
        self._drop_own(key)
        self.evictions += 1

    def _settle(self, keys: Sequence[bytes]) -> None:
        """After a change of state: of these entries, doomed ones go and others that nobody uses may be evicted."""
        for key in keys:
            self._bury(key)
        unused = [key for key in keys if key in self._entries and self._entries[key].evictable]
        self._policy.add(*unused)
        self._evictable += sum(self._entries[key].size for key in unused)

    def _remove(self, key: bytes) -> None:
        self.used -= self._entries.pop(key).size
        if self._journal is not None:
            self._journal.removed(self.name, key)

    def check_integrity(self, reading: Iterable[bytes], arriving: Iterable[bytes]) -> None:
        """Compare the books with the transfers in flight.

        Args:
            reading: keys that transfers read, once for each transfer.
            arriving: keys on their way here.

        Raises:
            IntegrityError: names the first contradiction.
        """
        readers: dict[bytes, int] = {}
        for key in reading:
            readers[key] = readers.get(key, 0) + 1
        expected = set(arriving)
        for key, entry in self._entries.items():
            if entry.readers != readers.pop(key, 0):
                raise IntegrityError(f"{self.name}: {key.hex()} counts {entry.readers} readers")
            if entry.arrived == (key in expected):
                raise IntegrityError(f"{self.name}: {key.hex()} is (there, on its way) = {entry.arrived}")
            if entry.evictable != (key in self._policy):
                raise IntegrityError(
                    f"{self.name}: {key.hex()} may be evicted: {entry.evictable}, the policy disagrees"
                )
        if readers or not expected <= self._entries.keys():
            raise IntegrityError(f"{self.name}: a transfer reads or brings what has no entry")
        if self.used != sum(entry.size for entry in self._entries.values()) or self.used > self.capacity:
            raise IntegrityError(f"{self.name}: {self.used} bytes counted of {self.capacity}")
        if self._evictable != sum(entry.size for entry in self._entries.values() if entry.evictable):
            raise IntegrityError(f"{self.name}: {self._evictable} evictable bytes counted")
        self._policy.check_integrity()
