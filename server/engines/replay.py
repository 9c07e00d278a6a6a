"""What becomes of the open sequences of an engine that ends: another engine goes on with them, or the same one when it is back.

A draw depends on seed and position alone, and whatever counts tokens counts `AddRequest.generated_ids`. So the engine that goes on
brings the tokens that the one before would have brought, and the client sees a pause.

A request may be what kills. So one that was being computed when an engine died, twice, is given to no third. Which those are is
known from `SequencesStarted`, which is sent before the step: all that were in any step of the engine that died, also if they had
lost their place to others since. A request that has only waited is never blamed, unless nobody else can be.
"""

import asyncio
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from scheduler.router.view import Role
from scheduler.types.messages import FinishReason, Output
from scheduler.types.step import ChunkPhase
from server.engines.status import EngineStatus
from server.errors import ApiError, EngineDied, PoisonRequest
from server.stream.output_stream import OutputStream

DEATHS = 2  # of engines that computed the same request, after which it is ended
_DIED = "The engine died while it worked on this request"


class Host(Protocol):
    """As much of an engine's client as is needed here."""

    @property
    def status(self) -> EngineStatus:
        """How it is doing."""

    @property
    def role(self) -> Role:
        """What it is meant for."""

    def replay(self, stream: OutputStream) -> None:
        """Go on with a sequence."""

    def sequence_ended(self, stream: OutputStream) -> None:
        """Count a sequence that has ended."""


@dataclass(frozen=True, slots=True)
class _Orphan:
    """A sequence that waits for an engine."""

    stream: OutputStream
    parent: Host  # where it was
    computes: str | None  # the parent's, when it was there: an engine that comes back may be another
    seconds: float  # that it may wait
    until: float  # on the loop's clock

    def error(self, why: str = "") -> ApiError:
        """What its reader is told if none goes on with it."""
        refusal = self.parent.status.unavailable()
        return (
            refusal if self.parent.status.state == "stopped" else EngineDied(f"{_DIED}{why}.", headers=refusal.headers)
        )


class Replays:
    """The sequences of `hosts` that wait for an engine, because theirs has ended. All calls belong to the event loop's thread.

    Args:
        hosts: all engines.
        choose: the best of some of them to go on with a sequence; asked when those before it have been sent.
    """

    def __init__(self, hosts: Sequence[Host], choose: Callable[[OutputStream, Sequence[Host]], Host]) -> None:
        self._hosts = tuple(hosts)
        self._choose = choose
        self._waiting: dict[str, _Orphan] = {}
        self._timer: asyncio.TimerHandle | None = None

    def inherit(self, parent: Host, streams: Sequence[OutputStream], seconds: float) -> None:
        """Take over what was open in an engine that has just ended.

        Args:
            parent: the engine.
            streams: its open sequences, the oldest first.
            seconds: longest wait for an engine to go on with them.
        """
        for stream in [stream for stream in streams if stream.started] or streams:
            stream.deaths += 1
        for stream in streams:
            if stream.deaths >= DEATHS:
                stream.fail(PoisonRequest(f"{DEATHS} engines died while they computed this request; no other will."))
                continue
            self._wait(parent, stream, seconds)
        self.engines_changed()

    def wait(self, parent: Host, stream: OutputStream, seconds: float) -> None:
        """Take over a sequence with which no engine can go on now, through no fault of its own; see `inherit`."""
        self._wait(parent, stream, seconds)
        self.engines_changed()

    def _wait(self, parent: Host, stream: OutputStream, seconds: float) -> None:
        stream.owned_by(functools.partial(self._ended, parent))
        until = asyncio.get_running_loop().time() + seconds
        self._waiting[stream.request_id] = _Orphan(stream, parent, parent.status.computes, seconds, until)

    def engines_changed(self) -> None:
        """An engine became ready, or will never be again: find an engine for those that wait, or end them if there will be none.

        Sequences of one prompt go to one engine, so that they share its blocks; several prompts of one request are spread, as when
        they came.
        """
        homes: dict[int, Host] = {}  # by the object that all sequences of a prompt have
        for orphan in list(self._waiting.values()):
            able = [host for host in self._hosts if host.status.computes == orphan.computes]
            usable = [host for host in able if host.status.usable]
            usable = [host for host in usable if host.role.takes(ChunkPhase.DECODE)] or usable
            if usable:
                prompt = id(orphan.stream.request.prompt_ids)
                home = homes[prompt] = homes.get(prompt) or self._choose(orphan.stream, usable)
                del self._waiting[orphan.stream.request_id]
                home.replay(orphan.stream)
            elif not any(host.status.state in ("starting", "ready") for host in able):
                self._fail(orphan)
        self._set_timer()

    def abort_all(self, reason: str) -> None:
        """End those that wait, for their readers: finish reason "abort", error `reason`."""
        waiting, self._waiting = self._waiting, {}
        for request_id, orphan in waiting.items():
            orphan.stream.push(Output(request_id=request_id, finish_reason=FinishReason.ABORT, error=reason))
        self._set_timer()

    def _ended(self, parent: Host, stream: OutputStream) -> None:
        """Its reader has left, or has read its end."""
        if self._waiting.pop(stream.request_id, None) is not None:
            self._set_timer()
        parent.sequence_ended(stream)

    def _fail(self, orphan: _Orphan, why: str = "") -> None:
        del self._waiting[orphan.stream.request_id]
        orphan.stream.fail(orphan.error(why))

    def _set_timer(self) -> None:
        """For the end of the longest wait; who came first waits longest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            first = next(iter(self._waiting.values()))
            self._timer = asyncio.get_running_loop().call_at(first.until, self._expire)

    def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        for orphan in list(self._waiting.values()):
            if orphan.until <= now:
                self._fail(orphan, f", and none went on with it within {orphan.seconds:g} s (replay_seconds)")
        self._set_timer()
