"""The scripted server of `tests/server/api/scripted.py` on a real socket, in a thread of its own, so that a browser can reach it.

Application, middleware, streams and connections are the real ones; only the engine is not. A token is a byte.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import uvloop

from scheduler.types.messages import AddRequest
from tests.server.api.scripted import ScriptedProcess, Server, ready_event, text_reply
from tests.server.http.real_server import running

ROOM = 8192  # tokens of context
SECONDS = 20.0


class Paced(ScriptedProcess):
    """Takes as many steps as it is allowed, and then waits."""

    allowed: float = float("inf")

    async def run(self):
        while self.playing:
            await asyncio.sleep(0.001)
            if self.allowed > 0:
                self.allowed -= 1
                self.step()


class LiveServer:
    """Runs while it is entered; `url` is where. `reply` is what the next requests are answered with."""

    def __init__(self, **settings: Any) -> None:
        self.reply = "Hello, wörld!"
        self.url = ""
        self.process = Paced(self._reply)
        self._settings = settings
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "LiveServer":
        self._thread.start()
        self._started.result(SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()

    def _reply(self, request: AddRequest) -> Iterable[int]:
        return text_reply(self.reply)(request)

    def let(self, steps: float) -> None:
        """Allow so many further steps, of a token each, and no others."""
        self._within(lambda: setattr(self.process, "allowed", steps))

    def bodies(self) -> list[Any]:
        """What the engine was asked, by now."""
        return self._within(lambda: list(self.process.requests))

    def aborted(self) -> list[str]:
        """The requests that were ended early, by now."""
        return self._within(lambda: list(self.process.aborted))

    def _within(self, action: Callable[[], Any]) -> Any:
        async def act() -> Any:
            return action()

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(SECONDS)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            server = Server(ready=False, **self._settings)
            server.process, self.process.incarnations = self.process, server.incarnations
            server.incarnations.attach(self.process, self.process, on_broken=lambda *_: None)
            server.incarnations.handle(replace(ready_event(), context=ROOM))
            async with running(server.app) as socket:
                self.url = f"http://127.0.0.1:{socket.port}/"
                self._started.set_result(None)
                await self._stop.wait()
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
            raise
