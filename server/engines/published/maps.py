"""What one engine does, as it draws it for people who watch: the newest map only, for however many there are."""

from collections.abc import Callable

import msgspec

from scheduler.types.engine_map import EngineMap
from scheduler.types.messages import Command, PublishMap


class PublishedMap:
    """One for the life of the server, over all incarnations of the engine. All calls belong to the event loop's thread.

    An engine draws nothing unless somebody watches, and once for all who do.

    Args:
        send: sends a command to the engine, if there is one.

    Attributes:
        newest: the newest map as JSON; None if there is none, or the engine has ended since.
    """

    def __init__(self, send: Callable[[Command], None]) -> None:
        self.newest: bytes | None = None
        self._send = send
        self._watchers: set[Callable[[], None]] = set()

    @property
    def wanted(self) -> bool:
        """Whether anybody watches."""
        return bool(self._watchers)

    def watch(self, on_news: Callable[[], None]) -> None:
        """Call this from now on when there is a newer map, or none any more. One who watches twice is called once."""
        if not self._watchers:
            self._send(PublishMap())
        self._watchers.add(on_news)

    def unwatch(self, on_news: Callable[[], None]) -> None:
        """No longer."""
        self._watchers.discard(on_news)
        if not self._watchers:
            self.newest = None
            self._send(PublishMap(publish=False))

    def engine_ready(self) -> None:
        """An incarnation takes commands."""
        if self._watchers:
            self._send(PublishMap())

    def engine_ended(self) -> None:
        """What it drew is no longer so."""
        self._news(None)

    def drawn(self, drawn: EngineMap) -> None:
        """A newer map has come."""
        if self._watchers:  # else it was under way when the last one left
            self._news(msgspec.json.encode(drawn))

    def _news(self, newest: bytes | None) -> None:
        self.newest = newest
        for on_news in self._watchers:
            on_news()
