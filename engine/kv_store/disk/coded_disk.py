"""The disk with its codec turned on and off by measurement: coding pays if it saves more disk time than it takes."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from engine.kv_store.disk.codec import Bytes, Codec
from engine.kv_store.disk.codec_choice import CodecChoice
from engine.kv_store.disk.disk_store import DiskStore
from engine.kv_store.store import BlockStore, Kept, Rows
from scheduler.types.block_hash import BlockKey


class TimedCodec:
    """A codec that notes how long it took. For several threads; times are summed over them."""

    def __init__(self, codec: Codec, clock: Callable[[], float]) -> None:
        self.name = codec.name
        self._codec = codec
        self._clock = clock
        self._lock = threading.Lock()
        self._coded = [0.0, 0.0, 0.0]  # raw bytes, encoded bytes, seconds
        self._decoded = [0.0, 0.0]  # raw bytes, seconds

    def encode(self, block: Bytes) -> bytes | memoryview:
        """Encode a block and note the time it took."""
        began = self._clock()
        data = self._codec.encode(block)
        with self._lock:
            _add(self._coded, block.nbytes, len(data), self._clock() - began)
        return data

    def decode(self, data: memoryview, out: Bytes) -> None:
        """Fill `out` and note the time it took."""
        began = self._clock()
        self._codec.decode(data, out)
        with self._lock:
            _add(self._decoded, out.nbytes, self._clock() - began)

    def tell(self, choice: CodecChoice) -> float:
        """Pass on what was measured since the last call; returns the seconds spent coding."""
        with self._lock:
            (raw, encoded, coding), (decoded, decoding) = self._coded, self._decoded
            self._coded, self._decoded = [0.0, 0.0, 0.0], [0.0, 0.0]
        choice.encoded(int(raw), int(encoded), coding)
        choice.decoded(int(decoded), decoding)
        return coding + decoding


class CodedDisk(BlockStore):
    """A `DiskStore` and the choice of its codec. Blocks of both kinds can be read, whatever the choice is now.

    Args:
        disk: the store; closed with this one. It must know `codec`.
        codec: that new blocks may go through.
        threads: of the disk store, among which the codec's work is shared.
        clock: seconds, monotonic.
    """

    capabilities = DiskStore.capabilities

    def __init__(
        self, disk: DiskStore, codec: TimedCodec, threads: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.disk = disk
        self._codec = codec
        self._threads = threads
        self._clock = clock
        self._choice = CodecChoice()
        self._tried = False
        self._lock = threading.Lock()

    def put(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[int]:
        """Write these blocks; the time it took informs the choice of codec."""
        began = self._clock()
        sizes = self.disk.put(block_keys, rows)
        seconds = self._clock() - began
        with self._lock:
            self._choice.wrote(sum(sizes), self._without_codec(seconds))
            if not self._tried and rows.ids:
                self._tried = True
                self._try(rows.array[rows.ids[0]])
            self._decide()
        return sizes

    def get(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[bool]:
        """Read these blocks; the time it took informs the choice of codec."""
        before, began = self.disk.bytes_read, self._clock()
        there = self.disk.get(block_keys, rows)
        seconds = self._clock() - began
        with self._lock:
            self._choice.read(self.disk.bytes_read - before, self._without_codec(seconds))
            self._decide()
        return there

    def drop(self, keys: Iterable[bytes]) -> None:
        """Forget these contents."""
        self.disk.drop(keys)

    def expect_newest_first(self) -> None:
        """From now on, what is put was used before what was put until then."""
        self.disk.expect_newest_first()

    def kept(self) -> Iterable[Kept]:
        """What an earlier process left."""
        return self.disk.kept()

    def check(self) -> None:
        """See whether the folder is still the one that was opened."""
        self.disk.check()

    def check_integrity(self) -> None:
        """Compare the books of the disk."""
        self.disk.check_integrity()

    def close(self) -> None:
        """Close the disk."""
        self.disk.close()

    def _try(self, block: Bytes) -> None:
        """Encode and decode a block only to measure it: otherwise nothing would be known of a codec that is off."""
        self._codec.decode(memoryview(self._codec.encode(block)), np.empty_like(block))
        self._codec.tell(self._choice)

    def _without_codec(self, seconds: float) -> float:
        """How much of this time the disk alone took: the codec's part of it is spread over the threads."""
        return max(seconds / 10, seconds - self._codec.tell(self._choice) / self._threads)

    def _decide(self) -> None:
        self.disk.codec = self._codec if self._choice.decide() else None


def _add(sums: list[float], *values: float) -> None:
    for index, value in enumerate(values):
        sums[index] += value
