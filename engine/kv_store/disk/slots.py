"""The books of the disk store: which slots of which segment files are in use, and how many bytes they take on the disk."""

from collections import Counter
from typing import NamedTuple


class Place(NamedTuple):
    """A slot: the number of its file, and its own, counted from the file's start."""

    segment: int
    slot: int


class Slots:
    """Slots of one size in numbered files.

    A slot is used, free, or bad (the disk cannot read it; it is never written again). A free one still takes the pages that were
    last written there, which makes writing to it cheaper than to a new one, until `hollow` gives them back.

    Not safe for threads: the store's lock guards it.

    Attributes:
        used: bytes on disk of each slot that holds a block or is about to.
        taken: the sum of these.
        spare: bytes on disk of free slots.
    """

    def __init__(self, per_segment: int) -> None:
        self.used: dict[Place, int] = {}
        self.taken = self.spare = 0
        self._per_segment = per_segment
        self._lengths: dict[int, int] = {}  # slots of each segment, used before or now
        self._free: dict[Place, int] = {}  # free slots that take bytes, and how many
        self._hollow: list[Place] = []  # free slots that take none
        self._bad: set[Place] = set()

    def add(self, place: Place, size: int) -> None:
        """Enter a slot that was found in use."""
        self._lengths[place.segment] = max(self._lengths.get(place.segment, 0), place.slot + 1)
        self.used[place] = size
        self.taken += size

    def take(self, size: int) -> tuple[Place, int]:
        """A slot for `size` bytes, and the bytes it takes on the disk so far: those beyond `size` are to be given back."""
        left = 0
        if self._free:
            place, left = self._free.popitem()
            self.spare -= left
        else:
            place = self._hollow.pop() if self._hollow else self._next()
        self.add(place, size)
        return place, left

    def free(self, place: Place) -> None:
        """Free a slot whose block is no longer wanted."""
        size = self.used.pop(place)
        self.taken -= size
        self.spare += size
        if size:
            self._free[place] = size
        else:
            self._hollow.append(place)

    def retire(self, place: Place) -> None:
        """Never use a slot again: it cannot be read."""
        self.taken -= self.used.pop(place)
        self._bad.add(place)

    def hollow(self) -> tuple[Place, int] | None:
        """A free slot whose bytes are to be given back; until it is freed again it counts as used, with no bytes."""
        if not self._free:
            return None
        place, size = self._free.popitem()
        self.spare -= size
        self.used[place] = 0
        return place, size

    def check(self) -> None:
        """Compare the books with each other.

        Raises:
            AssertionError: naming the first contradiction.
        """
        places = [*self.used, *self._free, *self._hollow, *self._bad]
        assert len(places) == len(set(places)), "a slot is in two states"
        assert all(0 <= place.slot < self._lengths[place.segment] for place in places), "a slot beyond its segment"
        counted = Counter(place.segment for place in places)
        assert counted == self._lengths, f"slots {counted} of {self._lengths}: one is lost"
        assert self.taken == sum(self.used.values()), f"{self.taken} bytes taken, {sum(self.used.values())} counted"
        assert self.spare == sum(self._free.values()), f"{self.spare} bytes spare, {sum(self._free.values())} counted"

    def _next(self) -> Place:
        """The slot after the last segment's end, or the first of a new one."""
        segment = max(self._lengths, default=0)
        slot = self._lengths.get(segment, 0)
        return Place(segment, slot) if slot < self._per_segment else Place(segment + 1, 0)
