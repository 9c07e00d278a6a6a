"""Restarts that an operator asks for: one engine after the other, each drained before and open for requests again afterwards.

So a server of several engines is renewed without losing a request, however many restarts are asked for at once. An engine that was
given up is started anew at once.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from server.engines.client import EngineClient
from server.engines.engines import Engines
from server.engines.supervision.supervisor import Supervisor

_log = logging.getLogger("headrace.engine")
_LOOK_SECONDS = 0.05


class Restarts:
    """The restarts under way and those that wait for their turn. All calls belong to the event loop's thread.

    Args:
        engines: of the server.
        supervisors: one for each, by its name.
        flush_seconds: that an engine may take to write KV which would be lost with it.
    """

    def __init__(self, engines: Engines, supervisors: Mapping[str, Supervisor], flush_seconds: float) -> None:
        self._engines = engines
        self._supervisors = supervisors
        self._flush_seconds = flush_seconds
        self._turn = asyncio.Lock()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def pending(self, name: str) -> bool:
        """Whether this engine's restart is under way or waits for its turn."""
        return name in self._tasks

    def ask(self, client: EngineClient) -> None:
        """Restart this engine when its turn comes; a second time means nothing."""
        if client.name not in self._tasks:
            restart = self._revive if client.status.state == "dead" else self._restart
            task = self._tasks[client.name] = asyncio.create_task(restart(client))
            task.add_done_callback(lambda _: self._tasks.pop(client.name))

    def cancel(self, but: str | None = None) -> None:
        """Forget those that wait or are under way, except for the engine `but`."""
        for name, task in list(self._tasks.items()):
            if name != but:
                task.cancel()

    async def _revive(self, client: EngineClient) -> None:
        """One that was given up: nothing is lost with it, whatever the others do."""
        self._supervisors[client.name].revive()
        await self._returned(client)

    async def _restart(self, client: EngineClient) -> None:
        async with self._turn:
            await _until(lambda: self._can_be_spared(client) or self._is_hopeless(client))
            if not self._can_be_spared(client):
                _log.error("%s: is not restarted: no other engine would take requests meanwhile", client.name)
                return
            _log.info("%s: drained, to be restarted", client.name)
            client.status.draining = True
            try:
                await _until(lambda: client.open_count == 0)
                await self._supervisors[client.name].restart(self._flush_seconds)
                await self._returned(client)
            finally:
                client.status.draining = False
            if client.status.state == "dead" and len(self._tasks) > 1:  # the next one would not start either
                _log.error("%s: has not come back: the other engines are not restarted", client.name)
                self.cancel(but=client.name)

    async def _returned(self, client: EngineClient) -> None:
        await _until(lambda: client.status.state in ("ready", "dead", "stopped"))

    def _can_be_spared(self, client: EngineClient) -> bool:
        """Whether others take requests meanwhile. A server's only engine can: whoever asks for its restart knows."""
        return len(self._engines) == 1 or any(other.status.usable for other in self._others(client))

    def _is_hopeless(self, client: EngineClient) -> bool:
        """Whether no other will take requests unless somebody does something."""
        return all(other.status.draining or other.status.state in ("dead", "stopped") for other in self._others(client))

    def _others(self, client: EngineClient) -> list[EngineClient]:
        return [other for other in self._engines if other is not client]


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(_LOOK_SECONDS)
