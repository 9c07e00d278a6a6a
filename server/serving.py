"""The running server: makes the parts, runs the web server and a supervisor for each engine, and ends them in good order."""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.types import ASGIApp

from configs.model.pooling import UNSTATED, read_pooling
from configs.model.source import ModelSource
from configs.settings import Settings
from scheduler.router.policies import make_router
from scheduler.router.role_switching import PhaseBounds, RoleSwitching
from scheduler.router.view import Role
from server.api.batches.lines import LineAnswers, batched
from server.api.context import ServerContext
from server.api.endpoints import ENDPOINTS
from server.app import create_app
from server.batches.batches import Batches, opened_batches, window_of
from server.drain import Drain
from server.engines.canary import canary_of
from server.engines.client import EngineClient
from server.engines.disaggregation.role_switcher import RoleSwitcher
from server.engines.engines import Engines
from server.engines.launch import Incarnation
from server.engines.launcher import Launcher
from server.engines.supervision.incarnations import Incarnations
from server.engines.supervision.restarts import Restarts
from server.engines.supervision.stop import StopDeadline, stop_all
from server.engines.supervision.supervisor import Supervisor
from server.errors import Unavailable
from server.http.connections import Connections
from server.http.descriptors import limits_of
from server.http.door import Door, OwnDoor, web_config
from server.keys.watch import WatchedKeyFile
from server.keys_in_use import KeysInUse
from server.listen import Listeners
from server.origin import is_loopback
from server.signals import SIGNALS
from server.stream.background import BackgroundResponses
from server.stream.response_store import ResponseStore
from server.stream.resumables import ResumableStreams
from server.structured.compiler import GrammarCompiler
from server.telemetry.black_box import BlackBox
from server.telemetry.console import Console
from server.telemetry.metrics import Metrics
from server.telemetry.traces.sending import tracing_of
from server.text import load_tokenizer
from server.text.chat_renderer import MessageFormats, load_chat_renderer

SHUTDOWN_REASON = "the server is shutting down"
_log = logging.getLogger("headrace.server")
_ENGINE_LOOKS_SECONDS = 0.2
_LAST_WRITES_SECONDS = 1.0  # for answers that have just been ended to reach their clients


def _beside(what: str, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    """Work beside all requests, for as long as the server lives. That it ends by itself is a defect, which the log tells."""

    def told(task: "asyncio.Task[None]") -> None:
        if not task.cancelled():
            _log.error("%s ended: it goes on when the server starts again", what, exc_info=task.exception())

    task = asyncio.create_task(work)
    task.add_done_callback(told)
    return task


class Serving:
    """One server's parts.

    Args:
        settings: the server's.
        source: the model's files.
        listeners: the sockets to serve on.
        launcher: starts each engine again when it has ended.
        started: when the process started, in `time.monotonic()` seconds.
        keys: the file of API keys, if there is one.

    Raises:
        UsageError: the file of use cannot be used.
        TokenizerError, TemplateError, ModelError: the model's text side is broken.
    """

    def __init__(
        self,
        settings: Settings,
        source: ModelSource,
        listeners: Listeners,
        launcher: Launcher,
        *,
        started: float,
        keys: WatchedKeyFile | None = None,
    ) -> None:
        tokenizer = load_tokenizer(source.path)
        formats = MessageFormats(settings.tool_format, settings.reasoning_format, settings.tool_template)
        chat = load_chat_renderer(tokenizer, settings.chat_template, settings.content_special_tokens, formats)
        names = tuple(settings.served_model_name) or (source.name,)
        console = _console(settings, listeners.url, names[0], has_template=chat is not None, started=started)
        self._settings, self._listeners, self._launcher = settings, listeners, launcher
        metrics, self._drain = Metrics(settings.shares), Drain()
        self._keys = KeysInUse(settings, keys, metrics)
        self._keepers = launcher.keepers
        if self._keepers is not None:
            metrics.watch_keepers(self._keepers.reports)
        clients = [EngineClient(name, settings, metrics) for name in settings.engine_names]
        bounds = PhaseBounds(*settings.phase_slos) if settings.phase_slos else None
        self._engines = _engines_of(settings, clients, metrics, bounds)
        self._roles = RoleSwitcher(RoleSwitching(bounds), clients, metrics) if bounds else None
        self._canary = canary_of(settings, clients, tokenizer.encode, metrics.canary)
        self._given_up = asyncio.Event()  # all engines
        incarnations = (Incarnations(client, metrics, console.on_event) for client in clients)
        self._supervisors = {each.client.name: self._supervisor(each) for each in incarnations}
        self._restarts = Restarts(self._engines, self._supervisors, settings.drain_seconds)
        self._streams = ResumableStreams(settings, metrics, self._drain)
        self._tracing, self._grammars = tracing_of(settings), GrammarCompiler(source.path)
        self._batches = opened_batches(settings, list(batched(ENDPOINTS)), metrics.batches)
        self._context = context = ServerContext(
            settings=settings,
            engines=self._engines,
            restarts=self._restarts,
            drain=self._drain,
            streams=self._streams,
            responses=ResponseStore(settings),
            background=BackgroundResponses(settings, metrics, self._drain),
            metrics=metrics,
            tokenizer=tokenizer,
            chat=chat,
            model_names=names,
            created=int(time.time()),
            grammars=self._grammars,
            keepers=self._keepers,
            tracing=self._tracing,
            keys=self._keys.ring,
            accounts=self._keys.accounts,
            batches=self._batches,
            pooling=read_pooling(source.path) if source.kind == "hf" else UNSTATED,
            black_box=BlackBox(settings.black_box_requests, texts=settings.keyed or is_loopback(settings.host)),
        )
        self._door = _door(create_app(context), settings, listeners, metrics)

    def run(self, first: Mapping[str, Incarnation]) -> int:
        """Serve, with `first` as the first incarnations of the engines it names. Returns the exit code of the process."""
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self._run(first))

    async def _run(self, first: Mapping[str, Incarnation]) -> int:
        """Serve until a signal, or until the web server or all engines have ended by themselves."""
        supervisors = self._supervisors
        if self._batches is not None:
            await self._batches.open()
        signalled = self._handle_signals(supervisors.values())
        lives = [asyncio.create_task(each.run(first.get(name))) for name, each in supervisors.items()]
        engines = asyncio.gather(*lives)
        keeping = asyncio.create_task(self._keepers.run()) if self._keepers else None
        beside = [
            _beside("the change of roles", self._roles.run()) if self._roles else None,
            _beside("the canary", self._canary.run()) if self._canary else None,
            _beside("the batches", self._run_batches(self._batches)) if self._batches else None,
            _beside("the keys' upkeep", self._keys.run()) if self._keys.changes else None,
        ]
        web = asyncio.create_task(self._door.serve())
        stop, given_up = (asyncio.create_task(event.wait()) for event in (signalled, self._given_up))
        ends: set[asyncio.Future[Any]] = {engines, web, stop, given_up}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        failed, deadline = not signalled.is_set(), StopDeadline(self._settings.drain_seconds)
        self._restarts.cancel()
        for task in beside:
            if task is not None:
                task.cancel()
        if not failed:
            await self._end_requests(deadline.left)
        stop.cancel()
        given_up.cancel()
        self._drain.over.set()
        self._door.stop()
        outlived = not self._settings.keeps or self._settings.kv_disk_path is not None  # a keeper's memory ends with it
        stopping = stop_all(supervisors.values(), self._keepers, deadline, outlived=outlived)
        await asyncio.gather(stopping, self._last_traces(web))
        await self._keys.close()
        await engines
        if keeping is not None:
            await keeping
        await self._grammars.close()
        if self._batches is not None:
            await self._batches.close()
        return 1 if failed else 0

    async def _run_batches(self, batches: Batches) -> None:
        """Run them as soon as an engine is ready, until cancelled."""
        settings, engines = self._settings, self._engines

        async def window() -> int:
            while engines.info is None:
                await asyncio.sleep(_ENGINE_LOOKS_SECONDS)
            return window_of(engines.info.max_step_tokens, settings, len(engines))

        await batches.run(LineAnswers(ENDPOINTS, self._context), window)

    async def _last_traces(self, web: "asyncio.Task[None]") -> None:
        """Send them when all requests have ended, while engines end."""
        await web
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def _supervisor(self, incarnations: Incarnations) -> Supervisor:
        return Supervisor(
            incarnations,
            partial(self._launcher.launch, incarnations.client.name),
            start_seconds=self._settings.start_seconds,
            hang_seconds=self._settings.hang_seconds,
            on_given_up=self._on_given_up,
        )

    def _on_given_up(self) -> None:
        if all(client.status.state == "dead" for client in self._engines):
            self._given_up.set()

    def _handle_signals(self, supervisors: Iterable[Supervisor]) -> asyncio.Event:
        """An event that the first signal sets; the second one ends the process at once."""
        signalled = asyncio.Event()

        def on_signal(number: int) -> None:
            if signalled.is_set():
                for supervisor in supervisors:
                    supervisor.kill()
                os._exit(128 + number)
            self._drain.begin()
            signalled.set()
            if requests := self._drain.active:
                told = "stopping: %d open %s, at most %g s; a second signal ends them now"
                _log.warning(told, requests, "request" if requests == 1 else "requests", self._settings.drain_seconds)

        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, on_signal, number)
        self._keys.handle_signal(loop)
        return signalled

    async def _end_requests(self, seconds: float) -> None:
        """Let open requests finish for so long, of which the last moment is for ending the rest with a reason.

        What is left of that time is for the engines.
        """
        last = min(_LAST_WRITES_SECONDS, seconds / 10)
        if await self._drain.idle(seconds - last):
            return
        self._engines.abort_all(SHUTDOWN_REASON)
        self._streams.stop()
        self._door.end_receiving(Unavailable(f"The request was not sent in time: {SHUTDOWN_REASON}."))
        if not await self._drain.idle(last):
            self._door.cut()


def _engines_of(
    settings: Settings, clients: Sequence[EngineClient], metrics: Metrics, bounds: PhaseBounds | None
) -> Engines:
    slo = None if settings.decode_slo_ms is None else settings.decode_slo_ms / 1000
    engines = Engines(clients, make_router(settings.router, decode_slo=slo), metrics.hand_overs, bounds=bounds)
    for name, role in settings.engine_roles.items():
        engines.by_name[name].role = Role(role)
    return engines


def _console(settings: Settings, url: str, model: str, *, has_template: bool, started: float) -> Console:
    return Console(
        sys.stdout,
        engines=settings.engine_names,
        url=url,
        uds=settings.uds,
        model=model,
        has_template=has_template,
        keyed=settings.keyed,
        page=settings.playground,
        started=started,
    )


def _door(app: ASGIApp, settings: Settings, listeners: Listeners, metrics: Metrics) -> Door:
    """What has the clients' connections."""
    if settings.http_processes == 1:
        connections = Connections(limits_of(settings), on_refusal=metrics.request_failed)
        return OwnDoor(app, connections, settings, listeners.sockets, listeners.certificate)
    from server.fronts.http_processes import HttpProcesses

    processes = HttpProcesses(web_config(app, settings), settings, listeners.sockets, metrics.request_failed)
    metrics.watch_http_processes(processes.figures)
    return processes
