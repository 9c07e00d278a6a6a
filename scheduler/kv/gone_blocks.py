"""Which contents were evicted of late: so that a miss can be told from a prompt that nobody has sent before."""

from collections.abc import Iterable


class GoneBlocks:
    """The last `size` keys that were added, or up to three times as many: an old generation goes as a whole, none is searched."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._young = set[bytes]()
        self._old = set[bytes]()

    def add(self, keys: Iterable[bytes]) -> None:
        """These contents are gone."""
        self._young.update(keys)
        if len(self._young) >= self._size:
            self._old, self._young = self._young, set()

    def holds(self, key: bytes) -> bool:
        """Whether this content went of late. It may be back."""
        return key in self._young or key in self._old
