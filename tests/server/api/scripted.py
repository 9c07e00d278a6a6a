"""The whole HTTP side over an engine that says what the test tells it, a token a step, at the test's pace.

Everything but the process is real: application, middleware, `EngineClient`, streams. The tokenizer has a token a byte.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from configs.model.pooling import UNSTATED
from configs.settings import Settings
from scheduler.types.messages import (
    AbortRequests,
    AddRequest,
    EngineStats,
    FinishReason,
    Output,
    Ready,
    RequestTimes,
    SequencesStarted,
    StepOutputs,
)
from scheduler.types.output_kind import OutputKind, Pooled
from scheduler.types.step import TokenLogprobs
from server.api.batches.lines import LineAnswers, batched
from server.api.context import ServerContext
from server.api.endpoints import ENDPOINTS
from server.app import create_app
from server.batches.batches import Batches
from server.drain import Drain
from server.engines.client import EngineClient
from server.engines.engines import Engines
from server.engines.supervision.incarnations import Incarnations
from server.engines.supervision.restarts import Restarts
from server.keys.watch import WatchedKeyFile
from server.keys_in_use import KeysInUse
from server.stream.background import BackgroundResponses
from server.stream.response_store import ResponseStore
from server.stream.resumables import ResumableStreams
from server.structured.compiler import GrammarCompiler
from server.telemetry.metrics import Metrics
from server.telemetry.traces.sending import tracing_of
from server.text.chat_renderer import MessageFormats, load_chat_renderer
from server.text.tokenizer import Tokenizer, byte_alphabet, surround

START, END = 256, 257
CONTEXT = 256
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{{ suffix }}"
)


def byte_tokenizer(bos: bool = False, template: str | None = CHATML) -> Tokenizer:
    """Token `b` is byte `b`; 256 and 257 begin and end a turn."""
    backend = Backend(models.BPE(vocab={char: byte for byte, char in byte_alphabet().items()}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    if bos:
        surround(backend, "<|im_start|>", None)
    return Tokenizer(backend, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, template)


@dataclass
class Playing:
    """One sequence in the engine."""

    request: AddRequest
    tokens: list[int]  # still to come
    done: int = 0
    prompt_scored: int = 0  # of the prompt's log-probabilities
    started: bool = False


@dataclass
class ScriptedProcess:
    """What `Incarnations` takes for an engine process and the wire to it. `reply` says what a request is answered with, as tokens.

    The end is the model's (a final `END`) or `max_tokens`. `pace` is awaited before each step, so a test can hold time.
    """

    reply: Callable[[AddRequest], Iterable[int]]
    per_step: int = 1
    prompt_per_step: int = 10**6  # log-probabilities
    pid: int = 1
    started: float = 0.0
    requests: list[AddRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    playing: dict[str, Playing] = field(default_factory=dict)
    fail: dict[int, Output] = field(
        default_factory=dict
    )  # by number of tokens: sent after that many, in place of the next
    steps: int = 0
    incarnations: Incarnations | None = None
    task: asyncio.Task | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self):
        self.gate.set()

    def listen(self, name, on_event, on_broken):
        """Events are handed to the client where they arise."""

    def once_connected(self, action):
        action()

    def remove_endpoints(self):
        """There are none."""

    def send(self, command):
        if isinstance(command, AddRequest):
            self.requests.append(command)
            done = len(command.generated_ids)
            self.playing[command.request_id] = Playing(command, list(self.reply(command))[done:], done)
            if self.task is None or self.task.done():
                self.task = asyncio.create_task(self.run())
        elif isinstance(command, AbortRequests):
            self.aborted += command.request_ids
            for request_id in command.request_ids:
                self.playing.pop(request_id, None)

    async def run(self):
        while self.playing:
            await asyncio.sleep(0)
            await self.gate.wait()
            self.step()
            for _ in range(4):  # readers get their turn
                await asyncio.sleep(0)

    def step(self):
        self.steps += 1
        if new := [name for name, playing in self.playing.items() if not playing.started]:
            self.incarnations.handle(SequencesStarted(request_ids=new))
        outputs = [self.advance(playing) for playing in list(self.playing.values())]
        for output in outputs:
            if output.finish_reason is not None:
                self.playing.pop(output.request_id, None)
        self.incarnations.handle(StepOutputs.packed(outputs, EngineStats(running=len(self.playing))))

    def advance(self, playing: Playing) -> Output:
        request, sampling = playing.request, playing.request.sampling
        now = time.monotonic()
        output = Output(request_id=request.request_id)
        playing.started = True
        if playing.done == 0 and sampling.prompt_logprobs is not None:
            ids = request.prompt_ids[1:][playing.prompt_scored :][: self.prompt_per_step]
            output.prompt_logprobs = [entry(token, sampling.prompt_logprobs) for token in ids]
            playing.prompt_scored += len(ids)
            if playing.prompt_scored < len(request.prompt_ids) - 1:
                return output
        if playing.done == len(request.generated_ids):
            cached = len(request.prompt_ids) if playing.done else len(request.prompt_ids) // 2
            output.times = RequestTimes(queued=now, scheduled=now, cached_tokens=cached)
        if playing.done in self.fail:
            failure = self.fail[playing.done]
            output.finish_reason, output.error = failure.finish_reason, failure.error
            return output
        if request.produces is not OutputKind.TOKENS:
            output.pooled = Pooled(kind=request.produces, values=pooled_values(request))
            output.finish_reason = FinishReason.STOP
            return output
        left = 1 if request.hand_over else sampling.max_tokens - playing.done
        ids = output.token_ids = playing.tokens[: min(self.per_step, left)]
        playing.tokens = playing.tokens[len(ids) :]
        playing.done += len(ids)
        if sampling.logprobs is not None:
            output.logprobs = [entry(token, sampling.logprobs) for token in ids]
        stops = {*sampling.stop_token_ids} | ({END} if not sampling.ignore_eos else set())
        hit = next((i for i, token in enumerate(ids) if token in stops), None)
        if hit is not None:
            output.token_ids, output.logprobs = ids[: hit + 1], output.logprobs[: hit + 1]
            output.finish_reason, output.stop_token = FinishReason.STOP, ids[hit]
        elif playing.done >= sampling.max_tokens or not playing.tokens:
            output.finish_reason = FinishReason.LENGTH
        elif request.hand_over:
            output.finish_reason = FinishReason.HANDED_OVER
        return output


def entry(token: int, most: int) -> TokenLogprobs:
    """The token is the second likeliest; the others follow it in the vocabulary."""
    top = [((token + 1) % 256, -0.25), (token, -0.5), *(((token + i) % 256, -float(i)) for i in range(2, 30))]
    return TokenLogprobs(token_id=token, logprob=-0.5, rank=2, top=top[:most])


def pooled_values(request: AddRequest) -> list[float]:
    """Eight counts of a prompt's tokens, or of a pair its length over 100."""
    if request.produces is OutputKind.SCORES:
        return [len(request.prompt_ids) / 100]
    return [float(sum(token % 8 == place for token in request.prompt_ids)) for place in range(8)]


def text_reply(text: str, end: bool = True) -> Callable[[AddRequest], Iterable[int]]:
    """Answer every request with this text."""
    return lambda request: [*text.encode(), *([END] if end else [])]


def ready_event() -> Ready:
    """What an engine says that takes requests."""
    return Ready(
        context=CONTEXT,
        vocab_size=258,
        block_size=32,
        blocks=8,
        eos_token_ids=[END],
        ends="257 <|im_end|> (config.json)",
        device="cpu",
        version="1",
        computes="a script",
        kv_fingerprint="a script's",
        max_step_tokens=512,
        max_running=64,
        produces=list(OutputKind),
        vector_size=8,
        reads_predictions=True,
    )


class Server:
    """The application and a client for it, on the running event loop."""

    def __init__(
        self,
        reply="Hello, wörld!",
        *,
        template=CHATML,
        bos=False,
        ready=True,
        endpoints=ENDPOINTS,
        now=time.time,
        produces=tuple(OutputKind),
        pooling=UNSTATED,
        tokenizer=None,
        **settings,
    ):
        self.produces = produces
        self.settings = Settings(**settings)
        tokenizer = tokenizer or byte_tokenizer(bos, template)
        formats = MessageFormats(self.settings.tool_format, self.settings.reasoning_format, self.settings.tool_template)
        chat = load_chat_renderer(tokenizer, None, self.settings.content_special_tokens, formats)
        metrics = Metrics(self.settings.shares)
        path = self.settings.api_keys
        self.keys = KeysInUse(self.settings, path and WatchedKeyFile(path, self.settings.tenants), metrics)
        self.engine = EngineClient("engine", self.settings, metrics)
        self.process = ScriptedProcess(text_reply(reply) if isinstance(reply, str) else reply)
        self.incarnations = Incarnations(self.engine, metrics)
        self.process.incarnations = self.incarnations
        if ready:
            self.replace(self.process)
        engines, drain = Engines([self.engine]), Drain()
        self.batches = None
        if self.settings.data_dir:
            paths = list(batched(endpoints))
            self.batches = Batches(self.settings, endpoints=paths, metrics=metrics.batches, now=now)
        self.context = ServerContext(
            settings=self.settings,
            engines=engines,
            restarts=Restarts(engines, {}, flush_seconds=0.0),
            drain=drain,
            streams=ResumableStreams(self.settings, metrics, drain),
            responses=ResponseStore(self.settings),
            background=BackgroundResponses(self.settings, metrics, drain),
            metrics=metrics,
            tokenizer=tokenizer,
            chat=chat,
            model_names=("small", "org/small"),
            created=1_790_000_000,
            grammars=GrammarCompiler(Path("no model")),
            tracing=tracing_of(self.settings),
            keys=self.keys.ring,
            accounts=self.keys.accounts,
            batches=self.batches,
            pooling=pooling,
        )
        self.app = create_app(self.context, endpoints)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://localhost")

    @contextlib.asynccontextmanager
    async def running_batches(self, window=8):
        """Batches are open, and run."""

        async def ready():
            return window

        answers = LineAnswers(ENDPOINTS, self.context)
        await self.batches.open()
        task = asyncio.create_task(self.batches.run(answers, ready))
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.batches.close()

    def replace(self, process):
        """Go on with this engine, which is ready."""
        process.incarnations, self.process = self.incarnations, process
        self.incarnations.attach(process, process, on_broken=pytest.fail)
        self.incarnations.handle(replace(ready_event(), produces=list(self.produces)))

    async def post(self, path, body, **kwargs):
        if isinstance(body, bytes):
            headers = {"content-type": "application/json", **kwargs.pop("headers", {})}
            kwargs = {"content": body, "headers": headers, **kwargs}
        else:
            kwargs["json"] = body
        return await self.client.post(path, **kwargs)

    def call(self, path, body, app=None) -> SimpleNamespace:
        """Send a request by hand, with a client that can leave."""
        return hand_made(app or self.app, path, json.dumps(body).encode())


def hand_made(app, path, body: bytes = b"", *, method="POST", headers=()) -> SimpleNamespace:
    """A call whose client stays until `leave` is set and takes what it is sent while `takes` is; `task` is the application's."""
    call = SimpleNamespace(leave=asyncio.Event(), takes=asyncio.Event(), sent=[], started=asyncio.Event(), task=None)
    call.takes.set()
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if unread:
            return unread.pop()
        await call.leave.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        call.sent.append(message)
        call.started.set()
        await call.takes.wait()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("headrace", 80),
    }
    call.task = asyncio.create_task(app(scope, receive, send))
    return call


def run(test):
    """Run an async test on a loop of its own."""
    return asyncio.run(test())
