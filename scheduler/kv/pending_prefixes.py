"""Contents that a running request is about to compute, so that others wait for them instead of computing them too.

Eight requests with one long prefix arrive together: the first computes it, the others are admitted when it is resident.
A promise never dead-locks: the one who made it is running and waits for nobody, and it is dropped when its maker is
preempted or ends.
"""

from collections.abc import Collection, Iterable

from scheduler.kv.block_pool import IntegrityError


class PendingPrefixes:
    """Which content keys are promised, and by whom."""

    def __init__(self) -> None:
        self._maker: dict[bytes, str] = {}
        self._made: dict[str, list[bytes]] = {}

    def add(self, request_id: str, keys: Iterable[bytes]) -> None:
        """A request starts to compute these contents. A key that is promised already stays its first maker's."""
        fresh = [key for key in keys if key not in self._maker]
        self._made[request_id] = fresh
        for key in fresh:
            self._maker[key] = request_id

    def resolve(self, key: bytes) -> None:
        """The content is resident (or planned to be, in a step before any that reads it)."""
        self._maker.pop(key, None)

    def drop(self, request_id: str) -> None:
        """The request computes no more."""
        for key in self._made.pop(request_id, ()):
            if self._maker.get(key) == request_id:
                del self._maker[key]

    def holds(self, key: bytes) -> bool:
        """Whether somebody is about to compute this content."""
        return key in self._maker

    def check_integrity(self, running: Collection[str]) -> None:
        """Every promise must have a running maker.

        Raises:
            IntegrityError: naming the maker that is gone.
        """
        for maker in self._maker.values():
            if maker not in running:
                raise IntegrityError(f"a promise is held by {maker}, which does not run")
