"""Contents that a running request is about to compute, so that others wait for them instead of computing them too.

If eight requests with one long prefix arrive together, the first computes it and the others are admitted when it is resident.
This never deadlocks: whoever computes a pending prefix is running and waits for nobody, and when it is preempted or ends, what
it has not computed is no longer pending.
"""

from collections.abc import Collection, Iterable, Set

from scheduler.kv.block_pool import IntegrityError


class PendingPrefixes:
    """Which contents are pending, and who computes them."""

    def __init__(self) -> None:
        self._maker: dict[bytes, str] = {}
        self._made: dict[str, list[bytes]] = {}

    def add(self, request_id: str, keys: Iterable[bytes]) -> None:
        """A request starts to compute these contents. One that is pending already stays with the request that was first."""
        fresh = [key for key in keys if key not in self._maker]
        self._made[request_id] = fresh
        for key in fresh:
            self._maker[key] = request_id

    def resolve(self, keys: Iterable[bytes]) -> None:
        """The contents are resident (or planned to be, in a step before any that reads them)."""
        for key in keys:
            self._maker.pop(key, None)

    def drop(self, request_id: str) -> None:
        """The request no longer computes anything."""
        for key in self._made.pop(request_id, ()):
            if self._maker.get(key) == request_id:
                del self._maker[key]

    def holds(self, key: bytes) -> bool:
        """Whether a request is about to compute this content."""
        return key in self._maker

    def lacks_all(self, keys: Set[bytes]) -> bool:
        """Whether no request is about to compute any of these contents."""
        return self._maker.keys().isdisjoint(keys)

    def maker(self, key: bytes) -> str:
        """Id of the request that is about to compute this content; empty if none is."""
        return self._maker.get(key, "")

    def check_integrity(self, running: Collection[str]) -> None:
        """Whoever computes a pending prefix must be running.

        Raises:
            IntegrityError: names the request that does not run.
        """
        for maker in self._maker.values():
            if maker not in running:
                raise IntegrityError(f"a prefix is pending for {maker}, which does not run")
