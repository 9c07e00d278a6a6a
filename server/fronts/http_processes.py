"""All HTTP processes of a server that has several: kept running, given connections, ended in good order."""

import asyncio
import contextlib
import errno
import logging
import socket
import time
from collections.abc import Sequence
from email.utils import formatdate

from uvicorn.config import Config
from uvicorn.server import ServerState

from configs.settings import Settings
from server.engines.supervision.restart import RestartPolicy
from server.errors import ApiError
from server.fronts.front import Front, arguments_of
from server.fronts.messages import BEAT_SECONDS
from server.http.connections import Refusal
from server.http.descriptors import raise_descriptor_limit
from server.http.host import WebHost
from server.telemetry.processes import HttpProcessFigures

_log = logging.getLogger("headrace.http")
_ACCEPT_AT_ONCE = 64
_LAST_WRITES_SECONDS = 1.0
_END_SECONDS = 3.0  # that one which was told to stop may take
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NO_DESCRIPTORS_SECONDS = 1.0


class _Place:
    """One of the HTTP processes, over all its incarnations."""

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        self.name = name
        self.arguments = arguments
        self.front: Front | None = None
        self.restarts = 0


class HttpProcesses:
    """Runs `settings.http_processes` of them.

    Args:
        config: of the web server; holds the application.
        settings: the server's.
        sockets: they listen. Only this process accepts from them, and hands each connection to the HTTP process with the fewest.
        on_refusal: told the code of each error that is answered without the application.
    """

    def __init__(
        self, config: Config, settings: Settings, sockets: Sequence[socket.socket], on_refusal: Refusal
    ) -> None:
        names = [f"http-{index}" for index in range(settings.http_processes)]
        self._places = [_Place(name, arguments_of(settings, name)) for name in names]
        raise_descriptor_limit()  # all children inherit it
        self._settings = settings
        self._sockets = sockets
        self._on_refusal = on_refusal
        self._state = ServerState()
        self._host = WebHost(config, self._state, {})
        self._headers = list(config.encoded_headers)
        self._stop = asyncio.Event()
        self._accepting = False

    async def serve(self) -> None:
        """Until `stop`, or until none of them can be kept running."""
        tick = asyncio.create_task(self._tick())
        lives = [asyncio.create_task(self._keep(place)) for place in self._places]
        try:
            await asyncio.gather(*lives)
        finally:
            self._accept(False)
            tick.cancel()
            for task in lives:
                task.cancel()
            for front in self._fronts():
                front.kill()

    def stop(self) -> None:
        """Accept no more, and have them end when what was answered is written."""
        self._stop.set()
        self._accept(False)

    def end_receiving(self, error: ApiError) -> None:
        """Refuse the requests whose bodies are still on their way."""
        for front in self._fronts():
            front.end_receiving(error.message)

    def cut(self) -> None:
        """Close all connections at once."""
        for front in self._fronts():
            front.cut()

    def figures(self) -> list[HttpProcessFigures]:
        """Of each, for metrics."""
        return [
            HttpProcessFigures(
                name=place.name,
                up=front is not None and front.ready and not front.silent,
                restarts=place.restarts,
                connections=0 if front is None else front.load,
                cpu_seconds=0.0 if front is None else front.heard.cpu_seconds,
            )
            for place in self._places
            for front in (place.front,)
        ]

    def _fronts(self) -> list[Front]:
        return [place.front for place in self._places if place.front is not None]

    # --- their lives ---

    async def _keep(self, place: _Place) -> None:
        """Run one incarnation after the other."""
        policy = RestartPolicy()
        while not self._stop.is_set():
            cause, was_ready = await self._live(place)
            self._accept(True)  # if others are there: else clients wait in the backlog
            if self._stop.is_set():
                return
            delay = policy.after_death(time.monotonic(), was_ready=was_ready)
            if delay is None:
                _log.error("%s: %s; given up, as %s", place.name, cause, policy.why)
                return
            _log.error("%s: %s; starting it again%s", place.name, cause, f" in {delay:g} s" if delay else "")
            place.restarts += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), delay)

    async def _live(self, place: _Place) -> tuple[str, bool]:
        """Run one from start to end; how it ended, and whether it had become ready."""
        try:
            front = place.front = Front(place.arguments, self._host, self._on_refusal)
        except OSError as error:
            return f"cannot be started: {error}", False
        was_ready = False
        ended, stop = (asyncio.create_task(event.wait()) for event in (front.ended, self._stop))
        try:
            await front.connect()
            while not ended.done():
                await asyncio.wait({ended, stop}, timeout=BEAT_SECONDS / 4, return_when=asyncio.FIRST_COMPLETED)
                was_ready = was_ready or front.ready
                self._accept(True)
                if stop.done() and not ended.done():
                    await self._end(front)
        except OSError as error:
            return f"cannot be listened to: {error}", False
        finally:
            ended.cancel()
            stop.cancel()
            front.kill()
            place.front = None
            front.close()
        return front.describe_end(), was_ready

    async def _end(self, front: Front) -> None:
        """Have it end, after what was answered is written."""
        tasks = set(self._state.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_WRITES_SECONDS)
        for task in self._state.tasks:
            task.cancel()
        front.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(front.ended.wait(), _END_SECONDS)
        front.kill()
        await front.ended.wait()

    async def _tick(self) -> None:
        """See who is silent, and what time it is for the answers' `Date`."""
        before = time.monotonic()
        while True:
            self._state.default_headers = [(b"date", formatdate(usegmt=True).encode()), *self._headers]
            await asyncio.sleep(BEAT_SECONDS / 2)
            now = time.monotonic()
            passed, before = min(now - before, BEAT_SECONDS), now  # if all were suspended, none is to blame
            for front in self._fronts():
                front.silence += passed
                seconds = self._settings.hang_seconds if front.ready else self._settings.start_seconds
                if front.silence > seconds:
                    front.kill(f"has said nothing for {front.silence:.0f} s, and was killed")

    # --- connections ---

    def _accept(self, accepts: bool) -> None:
        """From now on accept connections, if any process is there to take them; or no longer."""
        accepts = accepts and not self._stop.is_set() and any(front.ready for front in self._fronts())
        if accepts == self._accepting:
            return
        self._accepting = accepts
        loop = asyncio.get_running_loop()
        for each in self._sockets:
            if accepts:
                loop.add_reader(each, self._take, each)
            else:
                loop.remove_reader(each)

    def _take(self, listener: socket.socket) -> None:
        """Hand over what has come."""
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_DESCRIPTORS:
                    _log.error("no connection can be accepted: %s", error.strerror)
                    self._accept(False)
                    asyncio.get_running_loop().call_later(_NO_DESCRIPTORS_SECONDS, self._accept, True)
                    return
                continue  # the client has left
            with connection:
                self._give(connection)

    def _give(self, connection: socket.socket) -> None:
        ready = [front for front in self._fronts() if front.ready]
        for front in sorted(ready, key=lambda front: (front.silent, front.load)):
            if front.give(connection):
                return
