"""The file of keys, as it is now: taken up soon after it changes, and at once on SIGHUP."""

import asyncio
import logging
import os
from collections.abc import Callable, Collection

from server.keys.key_file import KeyFile, KeyFileError, read_key_file

LOOK_SECONDS = 1.0
_State = tuple[int, int, int] | None
_log = logging.getLogger("headrace.keys")


class WatchedKeyFile:
    """What the file said when it could last be used.

    A file that is being written says less than it will, and may be valid all the same. So a change is taken up when two looks have
    found the same; who replaces the file as a whole, as `headrace keys` does, may send SIGHUP.

    Args:
        path: of the file.
        taken: names that its keys may not have.

    Attributes:
        current: what it says.

    Raises:
        KeyFileError: it cannot be used.
    """

    def __init__(self, path: str, taken: Collection[str] = ()) -> None:
        self._path, self._taken = path, frozenset(taken)
        self._read = self._seen = self._state()
        self.current = read_key_file(path, self._taken)
        self._asked = asyncio.Event()
        self._on_change: Callable[[KeyFile], None] = lambda _: None
        self._on_refusal: Callable[[], None] = lambda: None

    def follow(self, on_change: Callable[[KeyFile], None], on_refusal: Callable[[], None]) -> None:
        """Who is told what it says after each change, and that it cannot be used."""
        self._on_change, self._on_refusal = on_change, on_refusal

    def look_now(self) -> None:
        """Read it, whether or not it seems to have changed."""
        self._asked.set()

    async def watch(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                await self._look_soon()
            except Exception:
                _log.exception("what the file of keys says could not be taken up")

    async def _look_soon(self) -> None:
        try:
            await asyncio.wait_for(self._asked.wait(), LOOK_SECONDS)
        except TimeoutError:
            await self.look()
        else:
            self._asked.clear()
            await self._take(self._state())

    async def look(self) -> None:
        """Look at it once."""
        state = self._state()
        settled, self._seen = state == self._seen, state
        if settled and state != self._read:
            await self._take(state)

    async def _take(self, state: _State) -> None:
        self._read = self._seen = state
        try:
            found = await asyncio.to_thread(read_key_file, self._path, self._taken)
        except Exception as error:
            unforeseen = None if isinstance(error, KeyFileError) else error
            told = "the file of keys cannot be used, the keys read before stay in use: %s"
            _log.error(told, error, exc_info=unforeseen)
            self._on_refusal()
            return
        _log.info("%s is in use: %s", self._path, _difference(self.current, found))
        self.current = found
        self._on_change(found)

    def _state(self) -> _State:
        """What changes when the file does, also where links to folders are swapped as Kubernetes does it."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns


def _difference(before: KeyFile, now: KeyFile) -> str:
    """By names, as far as they are few."""
    old, new = ({entry.name: entry for entry in each.entries} for each in (before, now))
    parts = [
        f"{len(names)} {what}" + (f" ({', '.join(names)})" if len(names) <= 8 else "")
        for what, names in (
            ("new", [name for name in new if name not in old]),
            ("gone", [name for name in old if name not in new]),
            ("changed", [name for name in new if name in old and new[name] != old[name]]),
        )
        if names
    ]
    return f"{len(new)} keys" + (f", {', '.join(parts)}" if parts else ", none changed")
