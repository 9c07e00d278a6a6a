"""Responses that are computed in the background: whether or not anybody asks for them, until they end or are cancelled.

Nothing of it outlives the server: when it stops, they are given the time that open requests have, and then fail.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from configs.settings import Settings
from scheduler.types.messages import FinishReason
from server.drain import Drain
from server.errors import ApiError, InternalError, TooManyResponses
from server.schema.base import Body
from server.stream.event_log import EventLog
from server.stream.generation import Delta, Generation, scored_tokens
from server.stream.response_store import items_of
from server.telemetry.lifetime import Exchange
from server.telemetry.metrics import Metrics
from server.to_thread import INLINE_SCORED_TOKENS, to_thread_if_larger

EVENT_BYTES = 4 * 2**20  # that are kept of one response's events; some 13,000 tokens without log-probabilities
_log = logging.getLogger("headrace.http")


class ResponseForm(Protocol):
    """How a response is told. The last word, whichever it is, also stores it."""

    finish_reason: FinishReason | None

    def queued(self) -> list[bytes]:
        """Its first events, while it waits."""

    def each(self, deltas: Iterable[Delta]) -> list[bytes]:
        """The events of one step."""

    def end(self) -> bytes:
        """Its last event, where it came to its end."""

    def failed(self, error: ApiError) -> bytes:
        """Its last event, where something went wrong."""

    def cancelled(self) -> bytes:
        """Its last event, where somebody cancelled it."""

    def so_far(self, status: str) -> dict[str, Any]:
        """The response, as far as it has come."""


class BackgroundResponse:
    """One response on its way, from its submission to its end. It has a place in the books, and gives it back.

    Attributes:
        owner: the tenant who may see it.
        asked: the items that were asked with.
        events: those of its stream, where it was asked for as one.
        attended: whether the request that asked for it is still open, and so counts an error that its client reads.
    """

    def __init__(
        self,
        owner: str | None,
        generation: Generation,
        form: ResponseForm,
        asked: Sequence[Body],
        events: EventLog | None,
        *,
        exchange: Exchange,
        on_end: Callable[["BackgroundResponse", ApiError | None], None],
    ) -> None:
        self.owner, self.asked, self.events = owner, asked, events
        self.attended = events is not None
        self._generation, self._form, self._exchange, self._on_end = generation, form, exchange, on_end
        self._cancelled = False
        if events is not None:
            events.add(form.queued())
        self._task = asyncio.create_task(self._run())

    @property
    def id(self) -> str:
        """The response's."""
        return self._generation.job.id

    @property
    def answer(self) -> dict[str, Any]:
        """Its JSON, as far as it has come."""
        return self._form.so_far("in_progress" if self._generation.started else "queued")

    def items(self) -> Mapping[str, Body]:
        """The items that were asked with, by their ids."""
        return items_of(self.id, self.asked)

    def unattended(self) -> None:
        """The request that asked for it is over."""
        self.attended = False

    async def cancel(self) -> None:
        """End it now, unless it has come to its end."""
        self._cancelled = True
        self._generation.close()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        error: ApiError | None = None
        try:
            last = await self._last_word()
        except ApiError as failure:
            error = failure
        except Exception:
            _log.exception("the response %s failed", self.id)
            error = InternalError("The server failed; its log has the cause.")
        if error is not None:
            self._exchange.error_code = error.code
            last = self._form.failed(error)
        self._generation.close()
        if self.events is not None:
            self.events.add([last])
            self.events.end()
        self._on_end(self, error)

    async def _last_word(self) -> bytes:
        async with contextlib.aclosing(self._generation.steps()) as steps:
            async for deltas in steps:
                write = partial(self._form.each, deltas)
                events = await to_thread_if_larger(scored_tokens(deltas), INLINE_SCORED_TOKENS, write)
                if self.events is not None:
                    self.events.add(events)
        complete = self._form.finish_reason is not None
        return self._form.cancelled() if self._cancelled and not complete else self._form.end()


class BackgroundResponses:
    """Those of a server that have not ended, by id, and how many there may be. All calls belong to the event loop's thread."""

    def __init__(self, settings: Settings, metrics: Metrics, drain: Drain) -> None:
        self._settings, self._metrics, self._drain = settings, metrics, drain
        self._running: dict[str, tuple[BackgroundResponse, str | None]] = {}
        self._places = 0

    def take_place(self) -> None:
        """Take one of the places. It must be given back, by `give_back` or by a response that began with it.

        Raises:
            TooManyResponses: there is none.
        """
        most = self._settings.max_background
        if self._places >= most:
            raise TooManyResponses(
                f"{self._places} responses run in the background, the limit (max_background) is {most}.",
                headers={"Retry-After": "5"},
            )
        self._places += 1
        self._drain.enter()

    def give_back(self) -> None:
        """Give a place back."""
        self._places -= 1
        self._drain.leave()

    def begin(
        self,
        owner: str | None,
        generation: Generation,
        form: ResponseForm,
        asked: Sequence[Body],
        *,
        events: EventLog | None,
        exchange: Exchange,
        counted_for: str | None,
    ) -> BackgroundResponse:
        """A response in the place that was taken. `counted_for`: the tenant to whom metrics count an error."""
        response = BackgroundResponse(owner, generation, form, asked, events, exchange=exchange, on_end=self._ended)
        self._running[response.id] = (response, counted_for)
        return response

    def find(self, id: str, owner: str | None) -> BackgroundResponse | None:
        """The response of this id, if it runs and is this owner's."""
        found, _ = self._running.get(id, (None, None))
        return found if found is not None and found.owner == owner else None

    def _ended(self, response: BackgroundResponse, error: ApiError | None) -> None:
        _, counted_for = self._running.pop(response.id)
        if error is not None and not response.attended:
            self._metrics.request_failed(error.code, counted_for)
        self.give_back()
