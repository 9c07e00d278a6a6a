"""A stream that outlives the connection which asked for it: written into a buffer, read by one connection at a time.

The answer is computed whether anybody reads it or not, until the client has been away for too long. Whoever comes back says which
event came last, and gets those behind it: from the buffer, then as they come.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Hashable
from typing import Protocol

from server.errors import ApiError, EventsDropped, InternalError, StreamOverrun, StreamTaken
from server.stream import sse
from server.stream.event_buffer import EventBuffer, size_of
from server.telemetry.lifetime import Exchange, Lifetime

WRITE_BYTES = 64 * 1024  # of what waited for a client, that are written to it at once
_LAST_EVENT_BYTES = 4096  # that an event may take which says why there is no more, beyond all bounds

Source = AsyncGenerator[list[bytes], None]
_log = logging.getLogger("headrace.http")


class Books(Protocol):
    """As much of the server's books of resumable streams as one of them needs."""

    @property
    def seconds(self) -> float:
        """How long a stream is kept without a reader."""

    @property
    def most_bytes(self) -> int:
        """Of one stream."""

    def take(self, size: int) -> bool:
        """Count so many bytes more; False, and nothing is counted, if all streams together would have too many."""

    def overdraw(self, size: int) -> None:
        """Count them in any case."""

    def give_back(self, size: int) -> None:
        """Count so many bytes less."""

    def changed(self, stream: "ResumableStream") -> None:
        """Somebody began or ended to read it, or has read its end."""

    def expired(self, stream: "ResumableStream") -> None:
        """Nobody has come for as long as it is kept."""

    def too_large(self, stream: "ResumableStream") -> None:
        """Its reader has left it with more than is kept of one stream."""


class EventReader:
    """One connection's place in a stream.

    Attributes:
        position: number of the last event that was handed over.
        exchange: the connection's request; notes the error that the client reads, if one ends the stream.
        displaced: why it ends before the stream does.
        resumes: whether it goes on with a stream that another request began.
    """

    def __init__(self, position: int, exchange: Exchange, resumes: bool) -> None:
        self.position = position
        self.exchange = exchange
        self.resumes = resumes
        self.displaced: ApiError | None = None
        self.ended = asyncio.Event()
        self.news = asyncio.Event()

    def end(self, error: ApiError) -> None:
        """Another one has its place, or the stream is gone."""
        self.displaced = error
        self.ended.set()
        self.news.set()


class ResumableStream:
    """One answer on its way into a buffer, and out of it. Made by `ResumableStreams`, which `close` it in the end.

    Args:
        id: the answer's.
        owner: who may read it.
        source: its events, a step's at a time. It raises an `ApiError` if the answer breaks; the stream then ends with that.
        release: gives back what the source holds in the engine; called once, when it has ended.
        lifetimes: of its sequences, for the access log.
        books: of all resumable streams.

    Attributes:
        complete: no event will come any more.
        delivered: all events were handed to a reader.
        error: what ended it, other than its own end.
    """

    def __init__(
        self,
        id: str,
        owner: Hashable,
        source: Source,
        release: Callable[[], None],
        lifetimes: list[Lifetime],
        *,
        books: Books,
    ) -> None:
        self.id = id
        self.owner = owner
        self.lifetimes = lifetimes
        self.complete = False
        self.delivered = False
        self.error: ApiError | None = None
        self._books = books
        self._buffer = EventBuffer()
        self._reader: EventReader | None = None
        self._away = False  # the client; before it first reads, it is about to
        self._begun = asyncio.Event()
        self._taken = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._closed: ApiError | None = None
        self._release: Callable[[], None] | None = release
        self._task = asyncio.create_task(self._fill(source))

    # --- what is written into it ---

    async def _fill(self, source: Source) -> None:
        try:
            async with contextlib.aclosing(source):
                async for events in source:
                    for event in events:
                        await self._add(event)
        except ApiError as error:
            self._break(error)
        except Exception:
            _log.exception("streaming %s failed", self.id)
            self._break(InternalError("The server failed; its log has the cause."))
        finally:
            self._end()

    def _end(self) -> None:
        if self._release is not None:
            self._release()
            self._release = None  # it holds the sequences
        self.complete = True
        self._tell()

    async def _add(self, event: bytes) -> None:
        size = size_of(event)
        while not self._make_room(size):
            if self._away:
                raise StreamOverrun(
                    f"The client was away while more than {self._books.most_bytes} bytes (resume_bytes) came, or more than there "
                    "is room for in all (resume_total_bytes); the rest was not computed."
                )
            self._taken.clear()
            await self._taken.wait()  # a client that reads slowly; the rest waits where it waits in any stream
        self._append(event)

    def _make_room(self, size: int) -> bool:
        """Room for another event. What the reader has had gives way: all but half of the bound, or more if room is scarce."""
        most, buffer = self._books.most_bytes, self._buffer
        while buffer.size + size > most // 2 and self._drop_read():
            pass
        if buffer.size + size <= most:
            while not self._books.take(size):
                if not self._drop_read():
                    break
            else:
                return True
        position = 0 if self._reader is None else self._reader.position
        if position == buffer.last and not self._away:
            self._books.overdraw(size)  # it goes straight to the reader
            return True
        return False

    def _drop_read(self) -> bool:
        """Drop the oldest event if the reader has had it; whether that was so."""
        if self._reader is None or self._reader.position <= self._buffer.dropped:
            return False
        self._books.give_back(self._buffer.drop_oldest())
        return True

    def _append(self, event: bytes) -> None:
        self._buffer.append(event)
        self._tell()

    def _break(self, error: ApiError) -> None:
        """The last event says why there is no other."""
        if self._closed is not None:
            return  # nobody reads it, and what was counted is given back
        self.error = error
        event = sse.error_event(error)
        self._books.overdraw(size_of(event))
        self._append(event)

    def _tell(self) -> None:
        self._begun.set()
        if self._reader is not None:
            self._reader.news.set()

    async def begun(self) -> None:
        """Wait for the first event.

        Raises:
            ApiError: it broke before there was one.
        """
        await self._begun.wait()
        if self.error is not None and self._buffer.last == 1:
            raise self.error

    # --- what is read from it ---

    @property
    def last(self) -> int:
        """Number of the newest event."""
        return self._buffer.last

    @property
    def has_reader(self) -> bool:
        """Whether a connection reads it."""
        return self._reader is not None

    @property
    def is_resumed(self) -> bool:
        """Whether that connection is another than the one that asked for the answer."""
        return self._reader is not None and self._reader.resumes

    def check(self, position: int) -> None:
        """Refuse to go on behind an event if the next one is not there any more.

        Raises:
            EventsDropped: names the oldest one that is there.
            StreamDeleted: it was closed.
        """
        if self._closed is not None:
            raise self._closed
        if position < self._buffer.dropped:
            raise EventsDropped(
                f"The events behind {position} are not kept any more: the oldest is {self._buffer.dropped + 1}, since at most "
                f"{self._books.most_bytes} bytes of a stream are (resume_bytes), and fewer where many share resume_total_bytes."
            )

    def attach(self, reader: EventReader) -> None:
        """Let this connection read, in the place of any other.

        Raises:
            EventsDropped, StreamDeleted: as `check`.
        """
        self.check(reader.position)
        if self._reader is not None:
            self._reader.end(StreamTaken("Another connection goes on with this stream; this one gets no more of it."))
        self._stop_timer()
        self._reader, self._away, self.delivered = reader, False, False
        self._taken.set()
        self._books.changed(self)

    def detach(self, reader: EventReader) -> None:
        """The connection has ended; the time within which another must come begins, if none has come yet."""
        if self._reader is not reader:
            return
        self._reader, self._away = None, True
        self._taken.set()
        if self._closed is not None:
            return
        self.await_reader()
        self._books.changed(self)
        if self._buffer.size > self._books.most_bytes + _LAST_EVENT_BYTES:
            self._books.too_large(self)

    def await_reader(self) -> None:
        """The time within which a reader must come begins."""
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(self._books.seconds, self._books.expired, self)

    async def read(self, reader: EventReader) -> AsyncGenerator[bytes, None]:
        """What comes behind the reader's position, with comments where nothing comes for long. Ends with the stream, or, if the
        reader is displaced, with an error event."""
        while reader.displaced is None:
            if reader.position < self._buffer.last:
                data, reached = self._buffer.after(reader.position, WRITE_BYTES)
                yield data
                reader.position = reached
                self._taken.set()
            elif self.complete:
                self._read_to_the_end(reader)
                return
            elif not await _within(reader.news, sse.KEEP_ALIVE_SECONDS):
                yield sse.KEEP_ALIVE
        if not isinstance(
            reader.displaced, StreamTaken
        ):  # that is mostly a connection that is dead, whose client came back
            reader.exchange.error_code = reader.displaced.code
        yield sse.error_event(reader.displaced)

    def _read_to_the_end(self, reader: EventReader) -> None:
        if self.error is not None:
            reader.exchange.error_code = self.error.code
        self.acknowledge()

    def acknowledge(self) -> None:
        """The client has had all of it."""
        self.delivered = True
        self._books.changed(self)

    # --- its end ---

    def close(self, error: ApiError) -> None:
        """End it: what is not computed yet never is, and a reader gets the error. Only the first call counts."""
        if self._closed is not None:
            return
        self._closed = error
        self._stop_timer()
        if self._reader is not None:
            self._reader.end(error)
        self._task.cancel()
        self._end()
        self._books.give_back(self._buffer.size)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event is set in time; it is cleared then."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    event.clear()
    return True
