"""The process that compiles, as the server sees it: started, asked, ended."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from typing import Self

import msgspec

from engine.ipc.child import without_secrets, working_folder
from server.errors import Unavailable, for_clients
from server.structured.compile_process import HEAD, CompileOutcome, Setup, Task

_START_SECONDS = 120.0
_GRACE_SECONDS = 10.0  # past which a process that should have said that a task is late has hung


class CompileChild:
    """One such process. What is asked of it fails with it, and nothing else does.

    Attributes:
        asked: how many grammars so far.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.asked = 0
        self._process = process
        self._open: dict[int, asyncio.Future[CompileOutcome]] = {}
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, setup: Setup) -> Self:
        """A process that has the model's tokens ready.

        Raises:
            Unavailable: there is none, with the reason.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "server.structured.compile_process"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=without_secrets(),
                cwd=working_folder(),
                start_new_session=True,
            )
        except OSError as error:
            raise unavailable(f"the process that compiles cannot be started: {error.strerror}") from None
        child = cls(process)
        try:
            async with asyncio.timeout(_START_SECONDS):
                ready = await child._send(-1, setup)
            if ready.refused:
                raise unavailable(for_clients(ready.refused))
        except TimeoutError:
            await child.close()
            raise unavailable(f"the process that compiles was not ready within {_START_SECONDS:g} s") from None
        except BaseException:
            await child.close()
            raise
        return child

    @property
    def pid(self) -> int:
        """Of the process, which leads a group: itself and its forks."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.returncode is None and not self._reader.done()

    async def ask(self, kind: str, source: str, owner: str, until: float) -> CompileOutcome:
        """What becomes of a grammar, which nobody waits for after `until`, by the monotonic clock.

        Raises:
            Unavailable: the process has ended, or is ended here since it does not answer.
        """
        self.asked += 1
        task = Task(number=self.asked, kind=kind, source=source, owner=owner, until=until)
        try:
            async with asyncio.timeout(until + _GRACE_SECONDS - time.monotonic()):
                return await self._send(self.asked, task)
        except TimeoutError:
            self.kill()
            raise unavailable("the process that compiles does not answer") from None

    def kill(self) -> None:
        """End it and its forks."""
        if not self._reader.done():  # else the group may be another one's by now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def close(self) -> None:
        """End it, and wait until it has ended."""
        self.kill()
        await self._reader

    async def _send(self, number: int, what: Setup | Task) -> CompileOutcome:
        assert self._process.stdin is not None
        future: asyncio.Future[CompileOutcome] = asyncio.get_running_loop().create_future()
        self._open[number] = future
        try:
            frame = msgspec.msgpack.encode(what)
            self._process.stdin.write(HEAD.pack(len(frame)) + frame)
            return await future
        finally:
            self._open.pop(number, None)

    async def _read(self) -> None:
        """Give each outcome to who waits for it, until the process and its forks have ended."""
        stdout = self._process.stdout
        assert stdout is not None
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                (size,) = HEAD.unpack(await stdout.readexactly(HEAD.size))
                outcome = msgspec.msgpack.decode(await stdout.readexactly(size), type=CompileOutcome)
                future = self._open.get(outcome.number)
                if future is not None and not future.done():
                    future.set_result(outcome)
        await self._process.wait()
        for future in self._open.values():
            if not future.done():
                future.set_exception(unavailable("the process that compiles has ended"))


def unavailable(why: str) -> Unavailable:
    """The refusal of a grammar that could be compiled at another time."""
    return Unavailable(f"The grammar cannot be compiled now: {why}.", headers={"Retry-After": "2"})
