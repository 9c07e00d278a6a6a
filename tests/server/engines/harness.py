"""Runs the client and the supervisor of the server against the scripted engine."""

import asyncio
import contextlib
import functools
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import httpx
import uvloop
from fastapi import FastAPI

from configs.model.source import resolve_model
from configs.settings import Settings
from scheduler.types.messages import AddRequest, Output
from scheduler.types.sampling_params import SamplingParams
from server.api.context import ServerContext
from server.app import create_app
from server.drain import Drain
from server.engines.client import EngineClient
from server.engines.engines import Engines
from server.engines.health import Liveness
from server.engines.launch import Incarnation
from server.engines.launch import launch as local_launch
from server.engines.process import RunningProcess
from server.engines.supervision.incarnations import Incarnations
from server.engines.supervision.restart import RestartPolicy
from server.engines.supervision.restarts import Restarts
from server.engines.supervision.supervisor import Supervisor
from server.stream.background import BackgroundResponses
from server.stream.job import Job, SequenceRequest, TokenizedPrompt
from server.stream.output_stream import OutputStream
from server.stream.response_store import ResponseStore
from server.stream.resumables import ResumableStreams
from server.structured.compiler import GrammarCompiler
from server.telemetry.lifetime import Lifetime
from server.telemetry.metrics import Metrics
from server.text import load_tokenizer
from server.text.chat_renderer import load_chat_renderer
from server.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("scripted_engine.py")
_ids = itertools.count()
HEARTBEAT = 0.02


@functools.cache
def tokenizer() -> Tokenizer:
    return load_tokenizer(resolve_model(None).path)


def make_app(
    settings: Settings,
    engines: Engines,
    metrics: Metrics,
    drain: Drain,
    supervisors: Mapping[str, Supervisor] | None = None,
    **parts: Any,
) -> FastAPI:
    """`parts`: further fields of the context."""
    context = ServerContext(
        settings=settings,
        engines=engines,
        restarts=Restarts(engines, supervisors or {}, flush_seconds=0.0),
        drain=drain,
        streams=ResumableStreams(settings, metrics, drain),
        responses=ResponseStore(settings),
        background=BackgroundResponses(settings, metrics, drain),
        metrics=metrics,
        tokenizer=tokenizer(),
        chat=load_chat_renderer(tokenizer()),
        model_names=("scripted",),
        created=0,
        grammars=GrammarCompiler(Path("no model")),
        **parts,
    )
    return create_app(context)


def http(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


def job(prompt_ids: list[int], sequences: int = 1) -> Job:
    """So many sequences of one prompt."""
    prompt, sampling = TokenizedPrompt(prompt_ids, None, "prompt"), SamplingParams(max_tokens=3)
    requests = [
        AddRequest(request_id=f"r{next(_ids)}", prompt_ids=prompt_ids, sampling=sampling) for _ in range(sequences)
    ]
    asked = [SequenceRequest(index, prompt, request) for index, request in enumerate(requests)]
    return Job(id="job", created=0, model="scripted", sequences=asked)


def arguments(*options: str) -> list[str]:
    return [sys.executable, str(SCRIPT), *options]


class Rig:
    """The parts of a server of one engine: the scripted one, or `command`."""

    def __init__(
        self,
        *options: str,
        hang_seconds: float,
        start_seconds: float,
        settings: Settings,
        name: str = "engine",
        metrics: Metrics | None = None,
        command: list[str] | None = None,
        launch: Callable[[], Incarnation] | None = None,
    ) -> None:
        os.environ["PYTHONPATH"] = str(ROOT)
        self.processes: list[RunningProcess] = []
        self.events: list[tuple[str, object]] = []
        self.metrics = metrics or Metrics()
        self.client = EngineClient(name, settings, self.metrics)
        incarnations = Incarnations(self.client, self.metrics, lambda name, event: self.events.append((name, event)))
        if command is None:
            self.client.status.liveness = Liveness(hang_seconds, HEARTBEAT)
        self.drain = Drain()
        self.settings = settings
        line = command or arguments("--heartbeat", str(HEARTBEAT), *options)
        self._launch = launch or (lambda: local_launch(line))
        self.supervisor = Supervisor(
            incarnations,
            self.launch,
            start_seconds=start_seconds,
            hang_seconds=hang_seconds,
            policy=RestartPolicy(delays=(0.0,)),
            tick=0.02,
        )

    def launch(self) -> Incarnation:
        incarnation = self._launch()
        self.processes.append(incarnation.process)
        return incarnation

    def request(self, first_id: int = 5, max_tokens: int = 3) -> AddRequest:
        sampling = SamplingParams(max_tokens=max_tokens)
        return AddRequest(request_id=f"r{next(_ids)}", prompt_ids=[first_id, 6], sampling=sampling)

    def submit(self, first_id: int = 5, max_tokens: int = 3) -> OutputStream:
        lifetime = Lifetime(received=time.monotonic(), prompt_tokens=2)
        return self.client.submit(self.request(first_id, max_tokens), lifetime)

    def http(self) -> httpx.AsyncClient:
        return http(make_app(self.settings, Engines([self.client]), self.metrics, self.drain))

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@contextlib.asynccontextmanager
async def running(
    *options: str,
    until: Callable[[Rig], bool] = lambda rig: rig.client.status.state == "ready",
    hang_seconds: float = 60.0,
    start_seconds: float = 60.0,
    settings: Settings | None = None,
    **parts: Any,
) -> AsyncIterator[Rig]:
    """A rig that runs. `parts`: further arguments of `Rig`."""
    settings = settings or Settings()
    rig = Rig(*options, hang_seconds=hang_seconds, start_seconds=start_seconds, settings=settings, **parts)
    task = asyncio.create_task(rig.supervisor.run())
    try:
        await eventually(lambda: until(rig))
        yield rig
    finally:
        await rig.supervisor.stop(grace=1.0)
        await task
        for process in rig.processes:
            assert await process.exited(60), "an engine was left behind"


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what the other process brings about; the suite's own time-out is the limit."""
    while not condition():
        await asyncio.sleep(0.005)


async def read(stream: OutputStream) -> list[Output]:
    async with contextlib.aclosing(stream):
        return [output async for output in stream]


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # the loop that serves
        runner.run(test())
