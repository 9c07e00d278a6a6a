"""Role switching in a server: shows `RoleSwitching` what requests and engines do, and gives engines the roles that are due."""

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from scheduler.router.role_switching import RequestProgress, RoleSwitching
from scheduler.router.view import Role
from server.engines.status import EngineStatus
from server.stream.output_stream import OutputStream
from server.telemetry.lifetime import Lifetime
from server.telemetry.metrics import Metrics

LOOK_SECONDS = 1.0
_log = logging.getLogger("headrace.engine")


class RoleHolder(Protocol):
    """As much of an engine's client as is needed here."""

    role: Role

    @property
    def name(self) -> str:
        """Its name among the engines."""

    @property
    def status(self) -> EngineStatus:
        """How it is doing."""

    @property
    def streams(self) -> Mapping[str, OutputStream]:
        """Its open sequences by their ids."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """An engine as `RoleSwitching` sees it."""

    role: Role
    available: bool
    request_ids: Collection[str]


class RoleSwitcher:
    """Of one server. All calls belong to the event loop's thread.

    Args:
        switching: decides.
        engines: all there are.
        metrics: told of switches, and tells of sequences that end.
    """

    def __init__(self, switching: RoleSwitching, engines: Sequence[RoleHolder], metrics: Metrics) -> None:
        self._switching = switching
        self._engines = tuple(engines)
        self._metrics = metrics
        metrics.on_end = self._ended

    async def run(self) -> None:
        """Look every second, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Make the switch that is due, if any. What is open stays where it is."""
        seen = [_Seen(engine.role, engine.status.usable, engine.streams.keys()) for engine in self._engines]
        streams = (stream for engine in self._engines for stream in engine.streams.values())
        counted = (stream for stream in streams if stream.lifetime.counted)
        progress = (_progress(stream.lifetime, len(stream.generated_ids)) for stream in counted)
        switch = self._switching.look(seen, progress, now)
        if switch is None:
            return
        engine = self._engines[switch.engine]
        engine.role = switch.after
        self._metrics.engine(engine.name).role_switched(switch.after.value, switch.behind.value)
        _log.info("%s: %s", engine.name, switch)

    def _ended(self, lifetime: Lifetime) -> None:
        end = time.monotonic() if lifetime.finished is None else lifetime.finished
        self._switching.ended(_progress(lifetime, lifetime.completion_tokens), end)


def _progress(lifetime: Lifetime, tokens: int) -> RequestProgress:
    return RequestProgress(lifetime.received, lifetime.first_token, lifetime.last_token, tokens)
