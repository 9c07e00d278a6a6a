"""Grammars compiled for an engine, off the event loop, each content once.

The process that does it is started by the first grammar. Nobody who sends none pays for it.
"""

import asyncio
import hashlib
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path

from engine.ipc.private_folder import private_folder, remove_folder
from scheduler.types.messages import Ready
from server.errors import InvalidRequest, for_clients
from server.structured.compile_child import CompileChild, unavailable
from server.structured.compile_process import CompileOutcome, Setup
from server.structured.features import path_of_pattern
from server.structured.grammar import Grammar
from server.structured.size import check_size

CACHE_BYTES = 16 * 2**20
MAX_WAITING = 128
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

    Who asks may have as many compiled at a time as there is still room for: one alone half of the room, and another always some.

    Args:
        model: its files.
        cpu_seconds: that one grammar may take.
    """

    def __init__(self, model: Path, cpu_seconds: int = CPU_SECONDS) -> None:
        self._model, self._cpu_seconds = model, cpu_seconds
        self._folder: Path | None = None
        self._child: asyncio.Task[CompileChild] | None = None
        self._under_way: dict[
            bytes, asyncio.Task[CompileOutcome]
        ] = {}  # until the process has answered, awaited or not
        self._shares: Counter[str] = Counter()  # of `_under_way`, by who asked first
        self._cache: OrderedDict[bytes, CompileOutcome] = OrderedDict()
        self._cached = 0

    async def compile(self, grammar: Grammar, engine: Ready, owner: str = "") -> Compiled | None:
        """The grammar for this engine's model; None if it cannot be compiled and is spared.

        Args:
            grammar: what to compile.
            engine: the one that will need it.
            owner: on whose account.

        Raises:
            InvalidRequest: it is too large, or none, or takes too long; with the reason.
            Unavailable: too many wait for theirs, or the process that compiles cannot be started.
        """
        try:
            check_size(grammar)
        except InvalidRequest:
            if grammar.spared:
                return None
            raise
        outcome = await self._outcome(grammar, engine, owner)
        if outcome.late:
            raise unavailable(f"it was not done within {WAIT_SECONDS:g} s")
        if outcome.refused and grammar.spared:
            return None
        if outcome.refused:
            reason = for_clients(outcome.refused)
            path = grammar.param
            if grammar.kind == "json_schema":
                path = path_of_pattern(grammar.source, outcome.refused, path)
            raise InvalidRequest(f"`{path}` cannot be compiled: {reason}", param=path)
        return Compiled(outcome.grammar, str(self._file))

    async def close(self) -> None:
        """End the process and remove its file."""
        if self._child is not None:
            self._child.cancel()
            (child,) = await asyncio.gather(self._child, return_exceptions=True)
            if isinstance(child, CompileChild):
                await child.close()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        if self._folder is not None:
            remove_folder(self._folder)

    @property
    def _file(self) -> Path:
        if self._folder is None:
            self._folder = private_folder()
        return self._folder / "vocabulary"

    async def _outcome(self, grammar: Grammar, engine: Ready, owner: str) -> CompileOutcome:
        key = hashlib.blake2b(f"{grammar.kind}\0{grammar.source}".encode(), digest_size=16).digest()
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        if key not in self._under_way:
            self._ensure_share(owner)
            task = asyncio.create_task(self._ask(grammar, engine, owner))
            self._under_way[key] = task
            self._shares[owner] += 1
            task.add_done_callback(lambda done: self._keep(key, owner, done))
        return await asyncio.shield(self._under_way[key])

    def _ensure_share(self, owner: str) -> None:
        own, all_of_them = self._shares[owner], len(self._under_way)
        if own >= MAX_WAITING - all_of_them:
            told = f"{own} of yours are being compiled, of {all_of_them} in all and {MAX_WAITING} at most"
            raise unavailable(f"{told}, which is your share")

    def _keep(self, key: bytes, owner: str, task: "asyncio.Task[CompileOutcome]") -> None:
        del self._under_way[key]
        self._shares[owner] -= 1
        self._shares = +self._shares  # without those that have none
        if task.cancelled() or task.exception() is not None or task.result().late:
            return
        self._cache[key] = task.result()
        self._cached += len(task.result().grammar) + _REFUSALS_KEPT
        while self._cached > CACHE_BYTES:
            _, dropped = self._cache.popitem(last=False)
            self._cached -= len(dropped.grammar) + _REFUSALS_KEPT

    async def _ask(self, grammar: Grammar, engine: Ready, owner: str) -> CompileOutcome:
        until = time.monotonic() + WAIT_SECONDS
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                child = await asyncio.shield(self._started(engine))
        except TimeoutError:
            raise unavailable(f"the process that compiles was not ready within {WAIT_SECONDS:g} s") from None
        return await child.ask(grammar.kind, grammar.source, owner, until)

    def _started(self, engine: Ready) -> "asyncio.Task[CompileChild]":
        """The process, which is started if there is none. It goes on starting whoever waits for it."""
        last = self._child
        if last is not None and last.done():
            if last.cancelled() or last.exception() is not None:
                last = None
            elif not last.result().alive:
                last.result().kill()
                last = None
        if last is None:
            setup = Setup(
                model=str(self._model),
                vocab_size=engine.vocab_size,
                eos_token_ids=engine.eos_token_ids,
                vocabulary=str(self._file),
                cpu_seconds=self._cpu_seconds,
            )
            last = self._child = asyncio.create_task(CompileChild.start(setup))
            last.add_done_callback(lambda task: task.cancelled() or task.exception())  # whether or not it is awaited
        return last
