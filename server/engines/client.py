"""The HTTP process's view of one engine: submit sequences, read their outputs, know how it is doing.

What belongs here: the wire to the engine, dispatch of events to open sequences, admission by queue length, the engine's state.
Never: HTTP, text, what a request means. How a dead engine comes back stands in `server/engines/supervision/supervisor.py`.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from configs.settings import Settings
from scheduler.router.state import ReplicaLimits, ReplicaState
from scheduler.router.view import Role
from scheduler.types.block_changes import BlockChanges
from scheduler.types.messages import (
    AbortRequests,
    AddRequest,
    Command,
    EngineStats,
    Event,
    Failed,
    FinishReason,
    Heartbeat,
    Output,
    Ready,
    SequencesStarted,
    Shutdown,
    StartPhase,
    StepOutputs,
)
from server.engines.disaggregation.hand_overs import HandOvers
from server.engines.health import EngineHealth, Liveness
from server.engines.process import EngineProcess
from server.engines.published_blocks import PublishedBlocks
from server.engines.replay import Replays
from server.engines.speed import Speed
from server.engines.wire import EngineWire
from server.errors import QueueFull, Unavailable, for_clients
from server.stream.output_stream import OutputStream
from server.telemetry.lifetime import Lifetime
from server.telemetry.metrics import Metrics

State = Literal["starting", "ready", "dead", "stopped"]

_COMPLETE = (FinishReason.STOP, FinishReason.LENGTH)
_log = logging.getLogger("headrace.engine")


class EngineClient:
    """One for the life of the server, over all incarnations of the engine. All calls belong to the event loop's thread.

    `name` tells the engine from the server's others. Requests are taken while it is `usable`. `state` is "starting" until the
    engine is ready and again while it is restarted, "dead" once restarting has been given up, "stopped" after `stopped`. While an
    incarnation starts, `info` is still what the one before said. While `draining` it takes no new requests, whatever its state.
    What is open when an incarnation ends goes to `replays`: the client's own, unless `Engines` has given it one that it shares
    with others. What it was asked to hand over goes to `hand_overs`, which only engines with others beside them have.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        metrics: Metrics,
        on_event: Callable[[str, Event], None] | None = None,
    ) -> None:
        self.name = name
        self.state: State = "starting"
        self._draining = False
        self.info: Ready | None = None
        self.stats = EngineStats()
        self.phases: list[StartPhase] = []
        self.failure: str | None = None  # why the last incarnation ended; None while one is ready
        self.last_words: str | None = None  # what the present incarnation said of its own failure
        self.last_token = -math.inf  # monotonic stamp of the newest token of any sequence
        self.liveness = Liveness(settings.hang_seconds)
        self._settings = settings
        self._metrics = metrics
        self._engine_metrics = metrics.engine(name)
        self._on_event = on_event
        self._process: EngineProcess | None = None
        self._wire: EngineWire | None = None
        self._streams: dict[str, OutputStream] = {}
        self.replays = Replays([self], lambda _, able: able[0])
        self.hand_overs: HandOvers | None = None
        self.role = Role.MIXED  # what it is meant for: new requests heed it, open ones stay
        self._engine_metrics.follow_role(lambda: self.role.value)
        self._speed = Speed()
        self.routing = ReplicaState()  # what a router knows of it
        self.blocks = PublishedBlocks(self.routing.blocks, self._send)
        self.names_of: Callable[[AddRequest], Sequence[bytes]] = lambda _: ()  # of a prompt's blocks, where of use
        self._hang: str | None = None  # what hangs, as the log and the metrics were told
        self._given_up = "it does not start"  # why, once it is "dead"
        self._start_seconds = 5.0  # how long the last start took; a first guess until one has been seen

    # --- requests ---

    def submit(self, request: AddRequest, lifetime: Lifetime) -> OutputStream:
        """Queue one sequence of a job that `ensure_room` has let in; the caller closes the stream. `request_id` must be new.

        Raises:
            Unavailable: the engine is not ready, or hangs.
        """
        self._ensure_usable()
        if request.request_id in self._streams:
            raise ValueError(f"request id {request.request_id!r} is in use; every sequence needs one of its own")
        stream = OutputStream(request, lifetime, self.sequence_ended)
        self._open(stream, request)
        self._metrics.sequence_begun(request.tenant)
        return stream

    def replay(self, stream: OutputStream) -> None:
        """Go on with a sequence of an engine that ended. It was let in then, so there is room for it."""
        stream.owned_by(self.sequence_ended)
        self._open(stream, stream.replay())
        self._engine_metrics.replayed()

    def take_over(self, stream: OutputStream, kv_wait_seconds: float) -> None:
        """Go on with a sequence whose prompt another engine has computed, or this one; it was let in then. It may wait for
        `kv_wait_seconds` for KV that the other engine still saves."""
        stream.owned_by(self.sequence_ended)
        self._open(stream, stream.hand_over(kv_wait_seconds))

    def orphan(self, stream: OutputStream) -> None:
        """Have a sequence of this engine wait until one can go on with it, though none has died of it."""
        self.replays.wait(self, stream, self._settings.replay_seconds)

    @property
    def streams(self) -> Mapping[str, OutputStream]:
        """Its open sequences by their ids."""
        return self._streams

    def serves(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a sequence of this prompt, the very object, is open here."""
        return any(stream.request.prompt_ids is prompt_ids for stream in self._streams.values())

    def _open(self, stream: OutputStream, request: AddRequest) -> None:
        if not self._streams:
            self._speed.begun(time.monotonic())
        self._send(request)
        self._streams[request.request_id] = stream
        tokens, left = len(request.prompt_ids) + len(request.generated_ids), request.sampling.max_tokens
        left = 1 if request.hand_over else left - len(request.generated_ids)
        loads = request.kv_wait_seconds > 0
        self.routing.submitted(request.request_id, tokens, left, self.names_of(request), loads=loads)

    def ensure_room(self, sequences: int) -> None:
        """Refuse a job of this many sequences before any of them is submitted.

        Raises:
            QueueFull: `max_waiting` sequences wait already, or would with these.
            Unavailable: the engine is not ready, or hangs.
        """
        self._ensure_usable()
        if self.has_room(sequences):
            return
        limit = self._settings.max_waiting
        raise QueueFull(
            f"The queue is full: {self.waiting} sequences wait, max_waiting is {limit} and this request needs {sequences}.",
            headers={"Retry-After": str(self._seconds_of_work())},
        )

    def has_room(self, sequences: int) -> bool:
        """Whether the queue is short enough for a job of this many."""
        limit = self._settings.max_waiting
        # A job of more sequences than the bound must have a chance: it may enter an empty queue.
        return self.waiting + sequences <= limit or (self.waiting == 0 and sequences > limit)

    def _seconds_of_work(self) -> int:
        """Until all that is open now will have been served. Not until one place is free: under overload somebody else has it then,
        and everybody would come again each second."""
        return self._speed.seconds_for(sum(map(self._speed.owed, self._streams.values())), time.monotonic())

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint` of this engine's answers: the same as long as a request can be expected to get the same answer.

        Raises:
            Unavailable: it was never ready, so what will compute is not known.
        """
        if self.info is None:
            raise self.unavailable()
        return "fp_" + hashlib.blake2b(self.info.computes.encode(), digest_size=6).hexdigest()

    @property
    def computes(self) -> str | None:
        """Everything besides the request on which its answers depend; None if it was never ready, so that it is not known."""
        return self.info.computes if self.info is not None else None

    @property
    def waiting(self) -> int:
        """Open sequences that are not running. What was submitted since the engine's last report counts as waiting."""
        return max(0, len(self._streams) - self.stats.running)

    @property
    def open_count(self) -> int:
        """Sequences that have not ended."""
        return len(self._streams)

    def abort(self, request_ids: Iterable[str], reason: str = "aborted") -> None:
        """End these for their readers (finish reason "abort", error `reason`) and in the engine. Ids not open are ignored."""
        known = [request_id for request_id in request_ids if request_id in self._streams]
        for request_id in known:
            stream = self._streams.pop(request_id)
            self.routing.ended(request_id)
            stream.push(Output(request_id=request_id, finish_reason=FinishReason.ABORT, error=reason))
        self._send_abort(known)

    def abort_all(self, reason: str) -> None:
        """`abort` for everything open."""
        self.abort(list(self._streams), reason)

    @property
    def hang(self) -> str | None:
        """What hangs, as the end of a sentence about the engine; None if nothing does, or it is not ready."""
        return self.liveness.hang(0.0, self._settings.health_seconds) if self.state == "ready" else None

    @property
    def working(self) -> bool:
        """Whether it could take requests: it is ready, and nothing hangs."""
        return self.state == "ready" and self.hang is None

    @property
    def draining(self) -> bool:
        """Whether somebody has asked to leave it alone."""
        return self._draining

    @draining.setter
    def draining(self, value: bool) -> None:
        self._draining = value
        self.replays.engines_changed()

    @property
    def usable(self) -> bool:
        """Whether it takes requests: it is working, and nobody has asked to leave it alone."""
        return self.working and not self.draining

    def health(self) -> EngineHealth:
        """How it is doing now; nothing is asked of the engine. One that is drained is in good health."""
        trouble = None if self.working else self.unavailable().message
        if trouble is not None and self.failure is not None and self.state != "dead":
            trouble += f" The last engine ended: {for_clients(self.failure)}."
        age = round(time.monotonic() - self.last_token, 3)
        return EngineHealth(trouble, self.liveness.doing, self.stats.steps, age)

    def unavailable(self) -> Unavailable:
        """Why no request is taken now, with Retry-After; for callers that look at `usable` themselves."""
        if (hang := self.hang) is not None:
            return Unavailable(f"The engine hangs: it {hang}.", headers={"Retry-After": "5"})
        if self.state == "dead":
            why = f"The engine was given up, as {self._given_up}: {for_clients(str(self.failure))}"
            return Unavailable(why, headers={"Retry-After": "60"})
        if self.state == "stopped":
            return Unavailable("The server is shutting down.", headers={"Retry-After": "5"})
        if self.state == "ready":
            return Unavailable("The engine is drained and takes no new requests.", headers={"Retry-After": "5"})
        done = f" ({self.phases[-1].name} done)" if self.phases else ""
        elapsed = time.monotonic() - self._process.started if self._process is not None else 0.0
        retry = max(1, math.ceil(self._start_seconds - elapsed))
        return Unavailable(f"The engine is starting{done}.", headers={"Retry-After": str(retry)})

    def _ensure_usable(self) -> None:
        if not self.usable:
            raise self.unavailable()

    def _send(self, command: Command) -> None:
        if self._wire is not None:
            self._wire.send(command)

    def _send_abort(self, request_ids: list[str]) -> None:
        if request_ids:
            self._send(AbortRequests(request_ids=request_ids))

    def sequence_ended(self, stream: OutputStream) -> None:
        """Its reader has read the end, or has closed it."""
        if self._streams.pop(stream.request_id, None) is not None:  # closed before the engine ended it
            self.routing.ended(stream.request_id)
            self._send_abort([stream.request_id])
        lifetime = stream.lifetime
        if lifetime.first_token is not None and lifetime.reason is not FinishReason.ERROR:
            self._speed.ended(lifetime.completion_tokens)
        self._metrics.sequence_ended(lifetime, stream.request.tenant)

    # --- the supervisor's part ---

    def attach(self, process: EngineProcess, wire: EngineWire, on_broken: Callable[[str], None]) -> None:
        """A new incarnation was started; the wire to it belongs to this client until `disconnect`.

        Args:
            process: the incarnation's process.
            wire: the wire to it.
            on_broken: called with the reason when the incarnation's events cannot be handled.
        """
        self._process, self._wire = process, wire
        self.state = "starting"
        self.phases = []
        self.last_words = None
        self.stats = EngineStats()
        self.liveness.restarted()
        self._hang = None
        self._engine_metrics.attached(process.pid)
        wire.listen(self.name, self.handle, on_broken)

    def passed(self, seconds: float) -> None:
        """So much time went by in which events of a ready engine would have been heard. The log has a line when it begins to hang,
        and one when it no longer does."""
        self.liveness.passed(seconds)
        before, self._hang = self._hang, self.hang
        if (before is None) != (self._hang is None):
            self._engine_metrics.answers(self._hang is None)
            if self._hang is None:
                _log.info("%s: no longer hangs", self.name)
                self.replays.engines_changed()
            else:
                _log.warning("%s: hangs: it %s", self.name, self._hang)

    def shut_down(self, flush_seconds: float | None) -> None:
        """Ask the engine to exit, after it has written KV that would be lost with it for at most so long (None: not at all)."""
        self._send(Shutdown(reason="the server stops", flush_seconds=flush_seconds))

    def disconnect(self) -> None:
        """Close the wire: nothing more is received or sent."""
        if self._wire is not None:
            self._wire.close()
        self._process = self._wire = None

    def detach(self, cause: str) -> None:
        """The incarnation ended: another engine, or the next incarnation, goes on with every open sequence."""
        self.failure = cause
        if self.state == "ready":
            self.state = "starting"
        self.stats = EngineStats()
        self.routing.restarted()
        self.blocks.engine_ended()
        self._engine_metrics.detached()
        streams, self._streams = self._streams, {}
        self.replays.inherit(self, list(streams.values()), self._settings.replay_seconds)

    def restarting(self) -> None:
        """Another incarnation will follow."""
        self._engine_metrics.restarted()

    def give_up(self, why: str = "it does not start") -> None:
        """No further incarnation will come, unless somebody asks for one; `why` goes on after "as"."""
        self.state, self._given_up = "dead", why
        self.replays.engines_changed()

    def revived(self) -> None:
        """An incarnation will come after all."""
        self.state = "starting"
        self._engine_metrics.restarted()

    def stopped(self) -> None:
        """The server is stopping: no further request is taken, and open ones fail."""
        self.state, self._hang = "stopped", None
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(self.unavailable())  # one each: a traceback belongs to one task
        self.replays.engines_changed()

    def handle(self, event: Event) -> None:
        """Absorb one event."""
        now = time.monotonic()
        self.liveness.heard(event)
        match event:
            case StepOutputs():
                self._dispatch(event, now)
                return
            case Heartbeat():
                return
            case BlockChanges():
                self.blocks.changed(event)
                return
            case SequencesStarted():
                self._started(event.request_ids)
                return
            case Ready():
                self._become_ready(event, now)
            case StartPhase():
                self.phases.append(event)
                self._engine_metrics.phase_ended(event)
            case Failed():
                self.last_words = event.error
        if self._on_event is not None:
            self._on_event(self.name, event)

    def _become_ready(self, event: Ready, now: float) -> None:
        self.info = event
        self.state = "ready"
        self.failure = None
        self.last_token = now  # Ready means that a real token was produced
        self.routing.limits = ReplicaLimits.of(event)
        self.blocks.engine_ready()
        if self._process is not None and self._wire is not None:
            self._wire.once_connected(self._process.remove_endpoints)
            self._start_seconds = now - self._process.started
        self._engine_metrics.ready(event, self._start_seconds)
        self.replays.engines_changed()

    def _started(self, request_ids: Sequence[str]) -> None:
        self.routing.started(request_ids)
        for request_id in request_ids:
            if (stream := self._streams.get(request_id)) is not None:
                stream.started = True

    def _dispatch(self, event: StepOutputs, now: float) -> None:
        self.stats = event.stats
        self._engine_metrics.step_ended(event)
        self.routing.step_ended(event.step_work, event.step_seconds, event.stats, now)
        busy, served = bool(self._streams), 0
        for output in event.outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:  # else it was aborted while this was under way
                served += self._deliver(stream, output, now)
        if busy:  # an engine at rest reports, too
            self._speed.served(served, now)

    def _deliver(self, stream: OutputStream, output: Output, now: float) -> int:
        """Hand an output to its reader. Returns how many tokens were served with it: the prompt's, too, if it is the first."""
        served = len(output.token_ids)
        if stream.lifetime.first_token is None and (output.token_ids or output.finish_reason in _COMPLETE):
            served += len(stream.request.prompt_ids)
        if output.times is not None:
            stream.lifetime.absorb(output.times, output.trail, self.name)
            if stream.handed_over is not None and output.token_ids and self.hand_overs is not None:
                self.hand_overs.arrived(self, stream, output.times)
        if output.token_ids:
            self.last_token = now
            self.routing.first_token(output.request_id)
            self._metrics.tokens_arrived(stream.lifetime.token_arrived(now))
        if output.finish_reason is not None:
            del self._streams[output.request_id]
            self.routing.ended(output.request_id)
            if output.finish_reason is FinishReason.HANDED_OVER:
                self._hand_over(stream, output)
                return served
            stream.lifetime.finished = now
        stream.push(output)
        return served

    def _hand_over(self, stream: OutputStream, output: Output) -> None:
        """Give the sequence away; for its reader the output is one like others."""
        output.finish_reason = None
        stream.push(output)
        assert self.hand_overs is not None, "nobody has asked for it"
        self.hand_overs.take(self, stream)
