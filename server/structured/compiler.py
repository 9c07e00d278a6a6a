"""Grammars compiled for an engine, off the event loop, each content once.

The process that does it is started by the first grammar. Nobody who sends none pays for it.
"""

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.ipc.child import without_secrets, working_folder
from engine.ipc.private_folder import private_folder, remove_folder
from scheduler.types.messages import Ready
from server.errors import InvalidRequest, Unavailable, for_clients
from server.structured.compile_process import HEAD, CompileOutcome, Setup, Task
from server.structured.features import path_of_pattern
from server.structured.grammar import Grammar
from server.structured.size import check_size

CACHE_BYTES = 16 * 2**20
MAX_WAITING = 64
CPU_SECONDS = 2
WAIT_SECONDS = 30.0  # for the process to start, or for one grammar, those before it included
_REFUSALS_KEPT = 256  # bytes that a refusal counts in the cache


@dataclass(frozen=True, slots=True)
class Compiled:
    """What an engine needs: a grammar as llguidance serializes it, and the path of the vocabulary."""

    grammar: str
    vocabulary: str


class GrammarCompiler:
    """Compiles grammars for the served model.

    Args:
        model: its files.
        cpu_seconds: that one grammar may take.
    """

    def __init__(self, model: Path, cpu_seconds: int = CPU_SECONDS) -> None:
        self._model, self._cpu_seconds = model, cpu_seconds
        self._folder: Path | None = None
        self._child: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._open: dict[int, asyncio.Future[CompileOutcome]] = {}
        self._under_way: dict[bytes, asyncio.Task[CompileOutcome]] = {}
        self._cache: OrderedDict[bytes, CompileOutcome] = OrderedDict()
        self._cached = 0
        self._next = 0

    async def compile(self, grammar: Grammar, engine: Ready) -> Compiled:
        """The grammar for this engine's model.

        Raises:
            InvalidRequest: it is too large, or none, or takes too long; with the reason.
            Unavailable: too many wait for theirs, or the process that compiles cannot be started.
        """
        check_size(grammar)
        outcome = await self._outcome(grammar, engine)
        if outcome.refused:
            reason = for_clients(outcome.refused)
            path = grammar.param
            if grammar.kind == "json_schema":
                path = path_of_pattern(grammar.source, outcome.refused, path)
            raise InvalidRequest(f"`{path}` cannot be compiled: {reason}", param=path)
        return Compiled(outcome.grammar, str(self._file))

    async def close(self) -> None:
        """End the process and remove its file."""
        if self._child is not None and self._child.returncode is None:
            os.killpg(self._child.pid, signal.SIGKILL)  # it leads a group: itself and its forks
        if self._reader is not None:
            await self._reader
        if self._folder is not None:
            remove_folder(self._folder)

    @property
    def _file(self) -> Path:
        if self._folder is None:
            self._folder = private_folder()
        return self._folder / "vocabulary"

    async def _outcome(self, grammar: Grammar, engine: Ready) -> CompileOutcome:
        key = hashlib.blake2b(f"{grammar.kind}\0{grammar.source}".encode(), digest_size=16).digest()
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        if key not in self._under_way:
            if len(self._under_way) >= MAX_WAITING:
                waiting = f"{len(self._under_way)} grammars are being compiled, which is the limit"
                raise Unavailable(f"The grammar cannot be compiled now: {waiting}.", headers={"Retry-After": "2"})
            task = asyncio.create_task(self._ask(grammar, engine))
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._keep(key, done))
        return await asyncio.shield(self._under_way[key])

    def _keep(self, key: bytes, task: "asyncio.Task[CompileOutcome]") -> None:
        del self._under_way[key]
        if task.cancelled() or task.exception() is not None:
            return
        self._cache[key] = task.result()
        self._cached += len(task.result().grammar) + _REFUSALS_KEPT
        while self._cached > CACHE_BYTES:
            _, dropped = self._cache.popitem(last=False)
            self._cached -= len(dropped.grammar) + _REFUSALS_KEPT

    async def _ask(self, grammar: Grammar, engine: Ready) -> CompileOutcome:
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                child = await self._started(engine)
                self._next = number = self._next + 1
                return await self._send(child, number, Task(number=number, kind=grammar.kind, source=grammar.source))
        except TimeoutError:
            raise _unavailable(f"it was not done within {WAIT_SECONDS:g} s") from None

    async def _started(self, engine: Ready) -> asyncio.subprocess.Process:
        """The process, which is started if there is none.

        Raises:
            Unavailable: it cannot be.
        """
        async with self._starting:
            if self._child is not None and self._child.returncode is None:
                return self._child
            try:
                self._child = child = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "server.structured.compile_process"),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    env=without_secrets(),
                    cwd=working_folder(),
                    start_new_session=True,
                )
                setup = Setup(
                    model=str(self._model),
                    vocab_size=engine.vocab_size,
                    eos_token_ids=engine.eos_token_ids,
                    vocabulary=str(self._file),
                    cpu_seconds=self._cpu_seconds,
                )
            except OSError as error:
                raise _unavailable(f"the process that compiles cannot be started: {error.strerror}") from None
            self._reader = asyncio.create_task(self._read(child))
            ready = await self._send(child, -1, setup)
            if ready.refused:
                raise _unavailable(for_clients(ready.refused))
            return child

    async def _send(self, child: asyncio.subprocess.Process, number: int, what: Setup | Task) -> CompileOutcome:
        assert child.stdin is not None
        future: asyncio.Future[CompileOutcome] = asyncio.get_running_loop().create_future()
        self._open[number] = future
        try:
            frame = msgspec.msgpack.encode(what)
            child.stdin.write(HEAD.pack(len(frame)) + frame)
            return await future
        finally:
            self._open.pop(number, None)

    async def _read(self, child: asyncio.subprocess.Process) -> None:
        """Give each outcome to who waits for it, until the process ends."""
        assert child.stdout is not None
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                (size,) = HEAD.unpack(await child.stdout.readexactly(HEAD.size))
                outcome = msgspec.msgpack.decode(await child.stdout.readexactly(size), type=CompileOutcome)
                future = self._open.get(outcome.number)
                if future is not None and not future.done():
                    future.set_result(outcome)
        await child.wait()
        for future in self._open.values():
            if not future.done():
                future.set_exception(_unavailable("the process that compiles has ended"))


def _unavailable(why: str) -> Unavailable:
    return Unavailable(f"The grammar cannot be compiled now: {why}.", headers={"Retry-After": "2"})
