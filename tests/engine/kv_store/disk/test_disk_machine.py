"""A disk store against a dictionary, with faults drawn between and during its calls."""

import errno
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.kv_store.disk import disk_store
from engine.kv_store.disk.disk_store import DiskStore
from engine.kv_store.disk.record import PAGE, size_of
from engine.kv_store.store import StoreLost
from tests.drawn import drawn
from tests.engine.kv_store.disk.disk_parts import Faulty, Shrink, block_key, get, number_of, put

NUMBERS = st.lists(st.integers(0, 11), min_size=1, max_size=4, unique=True)
ROOM = 7  # raw blocks; encoded ones leave space for more
FILES = 3  # slots of a file


class DiskMachine(RuleBasedStateMachine):
    """The model is what must be there: a number is in it from `put` to `drop`, but for as many as were hurt by faults.

    A dropped content may come back with the next opening, whole; `get` of the parts checks that nothing wrong is ever served.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.there: set[int] = set()
        self.ever: set[int] = set()
        self.hurt = 0  # contents that faults may have cost and that are still in the model
        self.store: DiskStore | None = None

    @initialize(size=st.sampled_from([100, PAGE, 4 * PAGE, 5 * PAGE + 7]))
    def begin(self, size: int) -> None:
        self.size = size
        self.open()

    def open(self) -> None:
        segment_bytes, disk_store._SEGMENT_BYTES = disk_store._SEGMENT_BYTES, FILES * size_of(self.size)
        try:
            self.filesystem = Faulty()
            self.store = DiskStore(
                self.root / "kv",
                block_bytes=self.size,
                fingerprint="model",
                limit_bytes=ROOM * size_of(self.size),
                codecs=[Shrink()],
                filesystem=self.filesystem,
                depth=1,  # the draw decides which block a fault hits
            )
        finally:
            disk_store._SEGMENT_BYTES = segment_bytes

    def spend(self, lost: set[int]) -> None:
        """Contents that are gone must have been paid for by faults."""
        assert len(lost) <= self.hurt, f"{sorted(lost)} are gone, {self.hurt} were hurt"
        self.hurt -= len(lost)
        self.there -= lost

    @rule(numbers=NUMBERS, coded=st.booleans(), short=st.lists(st.integers(1, 3 * PAGE), max_size=3))
    def put(self, numbers: list[int], coded: bool, short: list[int]) -> None:
        self.store.codec = Shrink() if coded else None
        self.filesystem.write_faults = [-length for length in short]
        sizes = put(self.store, numbers, self.size)
        self.filesystem.write_faults = []
        kept = {number for number, size in zip(numbers, sizes, strict=True) if size}
        assert self.there & set(numbers) <= kept
        assert len(kept) == len(numbers) or self.store.taken + size_of(self.size) > ROOM * size_of(self.size)
        self.there |= kept
        self.ever |= kept

    @rule(numbers=NUMBERS)
    def get(self, numbers: list[int]) -> None:
        came = {number for number, whole in zip(numbers, get(self.store, numbers, self.size), strict=True) if whole}
        assert came <= self.there
        self.spend(self.there & set(numbers) - came)

    @rule(numbers=NUMBERS, fault=st.sampled_from([errno.EIO, 0, -1, -PAGE]))
    def get_with_a_failing_read(self, numbers: list[int], fault: int) -> None:
        self.filesystem.read_faults = [fault]
        self.hurt += bool(self.there & set(numbers))
        self.get(numbers)
        self.filesystem.read_faults = []

    @rule(numbers=NUMBERS)
    def drop(self, numbers: list[int]) -> None:
        self.store.drop([block_key(number).hash for number in numbers])
        self.there -= set(numbers)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open()
        kept = [number_of(kept.block_key) for kept in self.store.kept()]
        assert len(kept) == len(set(kept)) and set(kept) <= self.ever
        # What was dropped and came back may take the room of what was written before it.
        if self.store.taken + size_of(self.size) <= ROOM * size_of(self.size):
            self.spend(self.there - set(kept))
        self.there = set(kept)

    @rule(numbers=NUMBERS, code=st.sampled_from([errno.ENOSPC, errno.EIO]), after=st.integers(0, 3))
    def fail_to_write(self, numbers: list[int], code: int, after: int) -> None:
        self.filesystem.write_faults = [None] * after + [code]
        try:
            put(self.store, numbers, self.size)
        except StoreLost:
            assert not self.filesystem.under_way
            self.store.check_integrity()
            self.ever |= set(numbers)
            self.reopen()
        else:
            self.filesystem.write_faults = []
            self.put(numbers, False, [])

    @precondition(lambda self: self.files())
    @rule(data=st.data())
    def flip_a_bit(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(self.files()))
        position = data.draw(st.integers(0, path.stat().st_size - 1))
        with path.open("r+b") as file:
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ 1 << data.draw(st.integers(0, 7))]))
        self.hurt += 1

    @precondition(lambda self: self.files())
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(self.files()))
        with path.open("r+b") as file:
            file.truncate(data.draw(st.integers(0, path.stat().st_size)))
        self.hurt += FILES

    def files(self) -> list[Path]:
        paths = sorted(self.root.glob("kv/kv-*/*.blocks"))
        return [path for path in paths if path.stat().st_size]

    @invariant()
    def integrity(self) -> None:
        if self.store is not None:
            self.store.check_integrity()
            assert len(self.there) * size_of(1) <= self.store.taken <= ROOM * size_of(self.size)

    def teardown(self) -> None:
        if self.store is not None:
            self.get(range(12))
            self.store.drop([block_key(number).hash for number in self.there])
            assert self.store.taken == 0
            self.store.close()
        shutil.rmtree(self.root)


TestDisk = DiskMachine.TestCase
TestDisk.settings = settings(max_examples=drawn(60), stateful_step_count=25)
