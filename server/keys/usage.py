"""What keys have used, by hour: added up in memory, written every few seconds by a thread of its own, read by `GET /v1/usage`."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

from server.keys.usage_store import Row, UsageQuery, UsageStore
from server.to_thread import seen_through

HOUR = 3600
_log = logging.getLogger("headrace.usage")


@dataclass(slots=True, kw_only=True)
class Use:
    """What one request used, or several together. `limited`: refused for a limit of the key; these are not among `requests`."""

    requests: int = 0
    errors: int = 0
    limited: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def add(self, other: "Use") -> None:
        """Add another's to this one's."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def counts(self) -> tuple[int, ...]:
        """All of them, in the order of `COUNTS`."""
        return tuple(getattr(self, name) for name in COUNTS)


COUNTS = tuple(each.name for each in fields(Use))


class UseBook:
    """Adds up, and hands on to the store. All calls belong to the event loop's thread, the store's to its own.

    What cannot be written stays here and is tried again; it is one entry for each key, model and hour, so it does not grow with
    requests.

    Args:
        path: the SQLite file; None: it is kept in memory, until the server ends.
        on_failure: told of each time that nothing could be written.
        clock: Unix seconds.

    Raises:
        UsageError: the file cannot be used.
    """

    def __init__(
        self,
        path: str | None,
        on_failure: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._on_failure = on_failure
        self._pending: dict[tuple[int, str, str], Use] = {}
        self._failing = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="usage")
        self._store = self._thread.submit(UsageStore, path, COUNTS).result()

    def add(self, key: str, model: str, use: Use) -> None:
        """Write down what a key has used of a model; of none, if its request was refused before one was known."""
        hour = int(self._clock() // HOUR * HOUR)
        known = self._pending.get((hour, key, model))
        if known is None:
            known = self._pending[hour, key, model] = Use()
        known.add(use)

    async def flush(self) -> None:
        """Write what is not written yet."""
        if not self._pending:
            return
        taken, self._pending = self._pending, {}
        rows: list[Row] = [(*place, *use.counts()) for place, use in taken.items()]
        try:
            await seen_through(self._thread, lambda: self._store.add(rows), owed=True)
        except Exception as error:  # the disk is full, or somebody holds the file: it is written later
            for place, use in self._pending.items():
                taken.setdefault(place, Use()).add(use)
            self._pending = taken
            self._failed(error)
        else:
            self._failing = False

    async def read(self, query: UsageQuery) -> list[Row]:
        """The rows that are asked for, with all that was used until now."""
        await self.flush()
        return await seen_through(self._thread, lambda: self._store.read(query))

    async def close(self) -> None:
        """Write the rest, and let go of the file."""
        await self.flush()
        await seen_through(self._thread, self._store.close)
        self._thread.shutdown(wait=False)

    def _failed(self, error: Exception) -> None:
        self._on_failure()
        if not self._failing:
            _log.error("the use of keys cannot be written: %s; it is kept in memory and tried again", error)
        self._failing = True
