"""Are the engines working? A token that came lately shows it, or one that is generated to find out."""

import asyncio
import contextlib
import itertools
import time
from dataclasses import dataclass

from scheduler.types.messages import AddRequest
from scheduler.types.sampling_params import SamplingParams
from server.engines.client import EngineClient
from server.engines.engines import Engines
from server.errors import Unavailable, for_clients

_PROBE_SECONDS = 10.0  # at most; less where `health_seconds` is less
_PROBE_PRIORITY = -(2**31)  # before everything that waits


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """The health of one engine. `last_token_seconds_ago` is infinite before its first token."""

    trouble: str | None  # why it cannot be used now, or None
    last_token_seconds_ago: float


class HealthCheck:
    """The health of all engines of a server, each checked on its own."""

    def __init__(self, engines: Engines, seconds: float) -> None:
        self._checks = {client.name: EngineCheck(client, seconds) for client in engines}

    async def look(self) -> dict[str, EngineHealth]:
        """The engines' health, by name; all are checked at the same time."""
        found = await asyncio.gather(*(check.look() for check in self._checks.values()))
        return dict(zip(self._checks, found, strict=True))


class EngineCheck:
    """Healthy means that a token was produced within `seconds`, or that one can be produced now.

    The latter is a real generation of one token. Only one is under way at a time, however many ask.
    """

    def __init__(self, engine: EngineClient, seconds: float) -> None:
        self._engine = engine
        self._seconds = seconds
        self._timeout = min(_PROBE_SECONDS, seconds)
        self._numbers = itertools.count()
        self._probe: asyncio.Task[str | None] | None = None

    async def look(self) -> EngineHealth:
        """The engine's health now."""
        trouble = await self._trouble()
        return EngineHealth(trouble, round(time.monotonic() - self._engine.last_token, 3))

    async def _trouble(self) -> str | None:
        if self._engine.state != "ready":
            cause = self._engine.failure
            return self._engine.unavailable().message + (
                f" The last engine ended: {for_clients(cause)}." if cause else ""
            )
        if time.monotonic() - self._engine.last_token <= self._seconds:
            return None
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._generate())
        return await asyncio.shield(self._probe)

    async def _generate(self) -> str | None:
        cause = None
        try:
            async with (
                asyncio.timeout(self._timeout),
                contextlib.aclosing(self._engine.probe(self._request())) as outputs,
            ):
                async for output in outputs:
                    if output.token_ids:
                        return None
                    cause = output.error
        except TimeoutError:
            return f"The engine produced no token within {self._timeout:g} s."
        except Unavailable as error:
            return error.message
        return f"The engine failed to produce a token: {for_clients(cause or 'it gave no cause')}"

    def _request(self) -> AddRequest:
        info = self._engine.info
        return AddRequest(
            request_id=f"health-{next(self._numbers)}",
            prompt_ids=[info.eos_token_ids[0] if info is not None and info.eos_token_ids else 0],
            sampling=SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True),
            priority=_PROBE_PRIORITY,
        )
