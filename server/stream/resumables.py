"""The resumable streams of a server, by id: who may go on with which, how long each is kept, and how much all of them may hold."""

import math
from collections.abc import Callable, Hashable

from configs.settings import Settings
from server.drain import Drain
from server.errors import StreamDeleted, StreamNotFound, StreamOverrun, TooManyStreams
from server.stream.resumable import ResumableStream, Source
from server.telemetry.lifetime import Lifetime
from server.telemetry.metrics import Metrics, StreamEnd

STREAM_OVERHEAD = 2048  # bytes that a stream takes beside its events


class ResumableStreams:
    """Makes resumable streams, finds them and forgets them. All calls belong to the event loop's thread.

    A drain waits for those that a client may still come back for: they have ended neither for it nor by themselves.
    """

    def __init__(self, settings: Settings, metrics: Metrics, drain: Drain) -> None:
        self._settings = settings
        self._metrics = metrics
        self._drain = drain
        self._streams: dict[str, ResumableStream] = {}
        self._owed: set[str] = set()  # read by no one, or by another request than began them, and not to the end
        self._delivered: dict[str, ResumableStream] = {}  # and without a reader, the oldest first
        self._held = 0
        metrics.watch_streams(lambda: len(self._streams), lambda: self._held)

    # --- requests ---

    def ensure_room(self) -> None:
        """Refuse a resumable request before anything is submitted for it.

        Raises:
            TooManyStreams: those that are kept hold all the room there is.
        """
        if self._fits(STREAM_OVERHEAD):
            return
        raise TooManyStreams(
            f"There is no room for another resumable stream: the {len(self._streams)} that are kept hold "
            f"{self._held} bytes, the limit (resume_total_bytes) is {self._settings.resume_total_bytes}.",
            headers={"Retry-After": str(math.ceil(self.seconds))},
        )

    def open(
        self, id: str, owner: Hashable, source: Source, release: Callable[[], None], lifetimes: list[Lifetime]
    ) -> ResumableStream:
        """A new stream, which is filled at once; the arguments are those of `ResumableStream`. It is found once it is kept,
        and must be kept or dropped."""
        self.overdraw(STREAM_OVERHEAD)
        return ResumableStream(id, owner, source, release, lifetimes, books=self)

    def keep(self, stream: ResumableStream) -> None:
        """Let clients come back to it; its first reader has as much time to come as any other."""
        self._streams[stream.id] = stream
        stream.await_reader()

    def drop(self, stream: ResumableStream) -> None:
        """End a stream that was never kept."""
        stream.close(StreamDeleted("The answer has not begun."))
        self.give_back(STREAM_OVERHEAD)

    def find(self, id: str, owner: Hashable) -> ResumableStream:
        """The stream of this id.

        Raises:
            StreamNotFound: there is none, or it is somebody else's, which is told apart in no way.
        """
        stream = self._streams.get(id)
        if stream is None or stream.owner != owner:
            raise StreamNotFound(
                f"There is no stream {id[:100]!r} for this key: it never was resumable, or is kept no longer "
                f"({self.seconds:g} s after its client has left or it has ended, resume_seconds)."
            )
        return stream

    def delete(self, stream: ResumableStream) -> None:
        """End and forget it, as its client asks."""
        self._forget(stream, "deleted", "The stream was deleted.")

    def resumed(self) -> None:
        """A client has come back."""
        self._metrics.stream_resumed()

    def stop(self) -> None:
        """The server stops: streams without a reader end now, as nobody can come back for them."""
        for stream in list(self._streams.values()):
            if not stream.has_reader:
                self._forget(stream, "stopped")

    # --- the streams' part ---

    @property
    def seconds(self) -> float:
        """How long a stream is kept without a reader."""
        return self._settings.resume_seconds

    @property
    def most_bytes(self) -> int:
        """Of one stream."""
        return self._settings.resume_bytes

    def take(self, size: int) -> bool:
        """Count so many bytes more, if there is room for them, or can be made."""
        fits = self._fits(size)
        if fits:
            self.overdraw(size)
        return fits

    def overdraw(self, size: int) -> None:
        """Count them in any case."""
        self._held += size

    def give_back(self, size: int) -> None:
        """Count so many bytes less."""
        self._held -= size

    def changed(self, stream: ResumableStream) -> None:
        """Somebody began or ended to read it, or has read its end."""
        if stream.id not in self._streams:
            return
        self._owe(stream, not stream.delivered and (not stream.has_reader or stream.is_resumed))
        self._delivered.pop(stream.id, None)
        if stream.delivered and not stream.has_reader:
            self._delivered[stream.id] = stream

    def expired(self, stream: ResumableStream) -> None:
        """Nobody has come for as long as it is kept."""
        self._forget(stream, "delivered" if stream.delivered else "expired")

    def too_large(self, stream: ResumableStream) -> None:
        """Its reader has left it with more than is kept of one stream: an event that is larger than that, or its last one."""
        self._forget(stream, "delivered" if stream.delivered else "overrun")

    # --- the books ---

    def _fits(self, size: int) -> bool:
        """Whether there is room for so many bytes. Streams that were delivered give way, the oldest first."""
        most = self._settings.resume_total_bytes
        while self._held + size > most and self._delivered:
            self._forget(next(iter(self._delivered.values())), "delivered")
        return self._held + size <= most

    def _owe(self, stream: ResumableStream, owed: bool) -> None:
        if owed and stream.id not in self._owed:
            self._owed.add(stream.id)
            self._drain.enter()
        elif not owed and stream.id in self._owed:
            self._owed.remove(stream.id)
            self._drain.leave()

    def _forget(self, stream: ResumableStream, end: StreamEnd, why: str = "The stream is kept no longer.") -> None:
        del self._streams[stream.id]
        self._delivered.pop(stream.id, None)
        self._owe(stream, False)
        stream.close(StreamDeleted(why))
        self.give_back(STREAM_OVERHEAD)
        self._metrics.stream_ended("overrun" if isinstance(stream.error, StreamOverrun) else end)
