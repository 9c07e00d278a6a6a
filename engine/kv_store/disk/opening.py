"""A folder as a store: files, codec, threads. No torch."""

import time
from pathlib import Path

from engine.kv_store.disk.codec import PlanesCodec
from engine.kv_store.disk.coded_disk import CodedDisk, TimedCodec
from engine.kv_store.disk.disk_store import DiskStore

_THREADS = 4


def open_disk(folder: Path, capacity: int, block_bytes: int, element_bytes: int, fingerprint: str) -> CodedDisk:
    """Take the folder, and read what an earlier process left there.

    Args:
        folder: created if missing.
        capacity: bytes that it may take.
        block_bytes: of a block.
        element_bytes: of one number of a key or value.
        fingerprint: of model, KV format and block size.

    Raises:
        StoreRefused: another process holds the folder.
        StoreLost: it cannot be read or written.
    """
    codec = TimedCodec(PlanesCodec(element_bytes), time.perf_counter)
    disk = DiskStore(
        folder,
        block_bytes=block_bytes,
        fingerprint=fingerprint,
        limit_bytes=capacity,
        codecs=[codec],
        depth=_THREADS,
    )
    return CodedDisk(disk, codec, _THREADS)
