"""What the shared memory says of itself: its geometry, and for each slot what it holds. So the next keeper finds what the last one
kept, however that ended.

A slot's record is cleared before the slot is written, and written when the bytes are there; it carries a checksum of itself and one
of the bytes. Only keepers write records.
"""

import struct
from dataclasses import dataclass
from hashlib import blake2b
from mmap import mmap
from typing import NamedTuple

from engine.kv_store.disk.record import PAGE, checksum, pack_ids, unpack_ids, whole_pages
from scheduler.types.block_hash import HASH_BYTES, BlockKey

ALIGNED = 2**21  # rows begin at a huge page
_FORMAT = 1
_HEAD = struct.Struct("<8sQQQQ16s")  # magic, format, slots, block bytes, ids of a record, digest of the fingerprint
_MAGIC = b"headrSLB"
_SUM = struct.Struct("<Q")
# Who writes it (zeros: it is written), checksum of the bytes, key, its length, ids.
_FIXED = struct.Struct(f"<QQQ{HASH_BYTES}sHH")
_USED = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the shared memory is divided: a page that says so, a record for each slot, the slots.

    Attributes:
        fingerprint: of model, KV format and block size.
        slots: how many.
        block_bytes: of each.
        ids: most token ids of a content.
    """

    fingerprint: str
    slots: int
    block_bytes: int
    ids: int

    @property
    def record_bytes(self) -> int:
        """Of one slot, a multiple of 8."""
        return -(-(_USED.size + _SUM.size + _FIXED.size + 4 * self.ids) // 8) * 8

    @property
    def offset(self) -> int:
        """Where the slots begin."""
        return -(-(PAGE + self.slots * self.record_bytes) // ALIGNED) * ALIGNED

    @property
    def size(self) -> int:
        """Bytes of it all."""
        return whole_pages(self.offset + self.slots * self.block_bytes)

    def head(self) -> bytes:
        """What the first page says of it."""
        digest = blake2b(self.fingerprint.encode(), digest_size=HASH_BYTES).digest()
        body = _HEAD.pack(_MAGIC, _FORMAT, self.slots, self.block_bytes, self.ids, digest)
        return body + _SUM.pack(checksum(body))


class Owner(NamedTuple):
    """An engine's end of its connections: the process, and a number of its own."""

    pid: int
    client: int


NOBODY = Owner(0, 0)


class SlotRecord(NamedTuple):
    """What is known of a slot that is not free.

    Attributes:
        writer: who was writing it; `NOBODY`: it holds a content.
        block_key: of the content.
        checksum: of its bytes.
        used: grows with every use, of all slots together.
    """

    writer: Owner
    block_key: BlockKey
    checksum: int
    used: int


class Records:
    """The records in a mapped slab of this geometry."""

    def __init__(self, memory: mmap, geometry: Geometry) -> None:
        self.geometry = geometry
        self._memory = memoryview(memory)
        self._stride = geometry.record_bytes
        self._used = 0

    def found(self) -> bool:
        """Whether the memory has this geometry. Other memory is to be cleared before anything is written there."""
        head = self.geometry.head()
        return bytes(self._memory[: len(head)]) == head

    def clear_all(self) -> None:
        """Forget everything, and say what the geometry is."""
        head = self.geometry.head()
        records = self.geometry.slots * self.geometry.record_bytes
        self._memory[: len(head)] = bytes(len(head))
        self._memory[PAGE : PAGE + records] = bytes(records)
        self._memory[: len(head)] = head

    def clear(self, slot: int) -> None:
        """The slot is free."""
        place = self._place(slot)
        self._memory[place : place + _USED.size + _SUM.size] = bytes(_USED.size + _SUM.size)

    def writing(self, slot: int, writer: Owner) -> None:
        """The slot is being written."""
        self._write(slot, _FIXED.pack(*writer, 0, b"", 0, 0))

    def keep(self, slot: int, block_key: BlockKey, of_bytes: int) -> None:
        """The slot holds this content, whose bytes have this checksum."""
        ids = pack_ids(block_key.token_ids)
        self._write(
            slot, _FIXED.pack(*NOBODY, of_bytes, block_key.hash, len(block_key.hash), len(block_key.token_ids)) + ids
        )

    def touch(self, slot: int) -> None:
        """The slot's content was used."""
        self._used += 1
        _USED.pack_into(self._memory, self._place(slot), self._used)

    def read(self, slot: int) -> SlotRecord | None:
        """What is known of a slot; None: nothing, it is free."""
        place = self._place(slot)
        (used,), (expected,) = (
            _USED.unpack_from(self._memory, place),
            _SUM.unpack_from(self._memory, place + _USED.size),
        )
        start = place + _USED.size + _SUM.size
        pid, client, of_bytes, key, length, count = _FIXED.unpack_from(self._memory, start)
        end = start + _FIXED.size + 4 * count
        if count > self.geometry.ids or checksum(self._memory[start:end]) != expected:
            return None
        self._used = max(self._used, used)
        block_key = BlockKey(key[:length], unpack_ids(bytes(self._memory[start + _FIXED.size : end])))
        return SlotRecord(Owner(pid, client), block_key, of_bytes, used)

    def row(self, slot: int) -> memoryview:
        """The bytes of a slot."""
        begin = self.geometry.offset + slot * self.geometry.block_bytes
        return self._memory[begin : begin + self.geometry.block_bytes]

    def _write(self, slot: int, body: bytes) -> None:
        self.clear(slot)
        start = self._place(slot) + _USED.size
        self._memory[start + _SUM.size : start + _SUM.size + len(body)] = body
        _SUM.pack_into(self._memory, start, checksum(body))
        self.touch(slot)

    def _place(self, slot: int) -> int:
        return PAGE + slot * self._stride
