"""Responses that are kept for their clients: to be asked for again, and to be gone on with, as a whole or by their items."""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from configs.settings import Settings
from server.errors import ResponseNotFound
from server.schema.base import Body
from server.schema.dialects.responses_items import CallItem, CallOutputItem, ReasoningItem
from server.stream.event_log import EventLog

OVERHEAD = 2048  # bytes that a response takes beside its text
_PREFIXES: dict[type[Body], str] = {CallItem: "fc", CallOutputItem: "fco", ReasoningItem: "rs"}


@dataclass(slots=True, kw_only=True)
class StoredResponse:
    """One response.

    Attributes:
        owner: the tenant who may see it.
        answer: its JSON.
        asked: the items that were asked with, without those of earlier responses.
        asked_bytes: what these take (`bytes_of`).
        given: the items that it added, as they go into the next one.
        previous: id of the response that it goes on with.
        events: of its stream, where they are kept.
    """

    owner: str | None
    answer: dict[str, Any]
    asked: Sequence[Body]
    asked_bytes: int
    given: Sequence[Body]
    previous: str | None
    events: EventLog | None = None
    size: int = field(init=False)
    used: float = 0.0

    def __post_init__(self) -> None:
        answer = len(msgspec.json.encode(self.answer))
        self.size = OVERHEAD + 2 * answer + self.asked_bytes
        if self.events is not None:
            self.size += self.events.size + answer  # which the last event, still to come, has once more

    @property
    def id(self) -> str:
        """The response's."""
        name: str = self.answer["id"]
        return name

    def items(self) -> dict[str, Body]:
        """All its items by their ids, those that were asked with first."""
        told = self.answer.get("output", ())
        return items_of(self.id, self.asked) | {each["id"]: item for each, item in zip(told, self.given, strict=False)}


def bytes_of(items: Sequence[Body]) -> int:
    """What items take, as JSON. Some milliseconds for a megabyte: not for the event loop."""
    return len(msgspec.json.encode([item.model_dump(warnings=False) for item in items]))  # of unions it would warn


def items_of(response: str, asked: Sequence[Body]) -> dict[str, Body]:
    """The items that a response was asked with, by the ids that say where they were."""
    name = response.removeprefix("resp_")
    return {f"{_PREFIXES.get(type(item), 'msg')}_{name}_{index}": item for index, item in enumerate(asked)}


class ResponseStore:
    """Keeps responses in memory for `response_seconds` after they were last used, up to `response_bytes` in all. Then
    those that were used least recently give way, of the owner who has most, so that nobody pushes out what others have while they
    have less. A response that goes on with others uses them. Calls may come from any thread.

    Args:
        clock: in seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()  # the least recently used first
        self._owned: dict[str | None, OrderedDict[str, None]] = {}  # the same by owner
        self._held_by: Counter[str | None] = Counter()
        self._places: dict[str, str] = {}  # by the id of an item: its response
        self._lock = threading.Lock()
        self.held = 0

    @property
    def keeps(self) -> bool:
        """Whether it keeps anything."""
        return self._settings.response_seconds > 0

    def __len__(self) -> int:
        return len(self._stored)

    def keep(self, stored: StoredResponse) -> None:
        """Keep a response, if it is not larger than all may be together."""
        with self._lock:
            self._expire()
            if not self.keeps or stored.size > self._settings.response_bytes:
                return
            self._stored[stored.id] = stored
            self._owned.setdefault(stored.owner, OrderedDict())[stored.id] = None
            self._held_by[stored.owner] += stored.size
            self._places.update(dict.fromkeys(stored.items(), stored.id))
            stored.used = self._clock()
            self.held += stored.size
            while self.held > self._settings.response_bytes:
                ((most, _),) = self._held_by.most_common(1)
                self._drop(next(iter(self._owned[most])))

    def find(self, id: str, owner: str | None) -> StoredResponse:
        """The response of this id.

        Raises:
            ResponseNotFound: there is none, or it is somebody else's, which is told apart in no way.
        """
        with self._lock:
            self._expire()
            return self._use(id, owner)

    def chain(self, id: str, owner: str | None) -> list[StoredResponse]:
        """The response of this id behind all those that it goes on with, the first one first.

        Raises:
            ResponseNotFound: as `find`, of any of them.
        """
        with self._lock:
            self._expire()
            found = [self._use(id, owner)]
            while found[-1].previous is not None:
                found.append(self._use(found[-1].previous, owner))
            for each in reversed(found):  # none gives way before those that go on with it
                self._used_last(each)
            return found[::-1]

    def item(self, id: str, owner: str | None) -> Body:
        """The item of this id, of any response.

        Raises:
            ResponseNotFound: as `find`.
        """
        with self._lock:
            self._expire()
            response = self._places.get(id)
            if response is None or self._stored[response].owner != owner:
                raise ResponseNotFound(
                    f"There is no item {id[:100]!r} for this key: its response never was stored, was deleted, or is kept no longer."
                )
            return self._use(response, owner).items()[id]

    def delete(self, id: str, owner: str | None) -> None:
        """Forget a response; those that go on with it cannot be gone on with.

        Raises:
            ResponseNotFound: as `find`.
        """
        with self._lock:
            self._expire()
            self._use(id, owner)
            self._drop(id)

    def _use(self, id: str, owner: str | None) -> StoredResponse:
        stored = self._stored.get(id)
        if stored is None or stored.owner != owner:
            raise ResponseNotFound(
                f"There is no response {id[:100]!r} for this key: it never was stored, was deleted, or is kept no longer "
                f"({self._settings.response_seconds:g} s after its last use, response_seconds, or until others take its room, "
                "response_bytes)."
            )
        stored.used = self._clock()
        self._used_last(stored)
        return stored

    def _used_last(self, stored: StoredResponse) -> None:
        self._stored.move_to_end(stored.id)
        self._owned[stored.owner].move_to_end(stored.id)

    def _expire(self) -> None:
        old = self._clock() - self._settings.response_seconds
        while self._stored and next(iter(self._stored.values())).used < old:
            self._drop(next(iter(self._stored)))

    def _drop(self, id: str) -> None:
        gone = self._stored.pop(id)
        self.held -= gone.size
        self._held_by[gone.owner] -= gone.size
        del self._owned[gone.owner][id]
        if not self._owned[gone.owner]:
            del self._owned[gone.owner], self._held_by[gone.owner]
        for name in gone.items():
            self._places.pop(name, None)
