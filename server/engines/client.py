"""The HTTP process's view of one engine: submit sequences, read their outputs.

What belongs here: open sequences, what the engine sends for them, admission by queue length. Never: HTTP, text, what a request
means. How the engine is doing stands in `server/engines/status.py`, what becomes of one that ends in
`server/engines/supervision/`.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from configs.settings import Settings
from scheduler.router.state import ReplicaLimits, ReplicaState
from scheduler.router.view import Role
from scheduler.types.messages import (
    IDLE_PRIORITY,
    AbortRequests,
    AddRequest,
    Command,
    FinishReason,
    Output,
    Ready,
    StepOutputs,
)
from server.engines.disaggregation.hand_overs import HandOvers
from server.engines.published.published import Published
from server.engines.replay import Replays
from server.engines.speed import Speed
from server.engines.status import EngineStatus
from server.engines.wire import EngineWire
from server.errors import QueueFull
from server.stream.output_stream import OutputStream
from server.telemetry.lifetime import Lifetime
from server.telemetry.metrics import Metrics

_COMPLETE = (FinishReason.STOP, FinishReason.LENGTH)


class EngineClient:
    """One for the life of the server, over all incarnations of the engine. All calls belong to the event loop's thread.

    What is open when an incarnation ends goes to `replays`: the client's own, unless `Engines` has given it one that it shares
    with others. What it was asked to hand over goes to `hand_overs`, which only engines with others beside them have.

    Attributes:
        name: tells the engine from the server's others.
        status: how it is doing. Requests are taken while it is usable.
        role: what it is meant for: new requests heed it, open ones stay.
        routing: what a router knows of it.
        blocks: which KV blocks it has, as far as anybody wants to know.
        names_of: the names of a prompt's blocks, where of use.
        wire: to the present incarnation; None if there is none.
    """

    def __init__(self, name: str, settings: Settings, metrics: Metrics) -> None:
        self.name = name
        self.status = EngineStatus(name, settings, metrics.engine(name), self._usability_changed)
        self.role = Role.MIXED
        self.routing = ReplicaState()
        self.published = Published(self.routing.blocks, self.send)
        self.names_of: Callable[[AddRequest], Sequence[bytes]] = lambda _: ()
        self.replays = Replays([self], lambda _, able: able[0])
        self.hand_overs: HandOvers | None = None
        self.wire: EngineWire | None = None
        self._settings = settings
        self._metrics = metrics
        self._engine_metrics = metrics.engine(name)
        self._engine_metrics.follow_role(lambda: self.role.value)
        self._streams: dict[str, OutputStream] = {}
        self._idle: set[str] = set()  # of these, those that run on what nobody else needs
        self._speed = Speed()

    def _usability_changed(self) -> None:
        self.replays.engines_changed()

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint` of this engine's answers: the same as long as a request can be expected to get the same answer.

        Raises:
            Unavailable: it was never ready, so what will compute is not known.
        """
        if self.status.computes is None:
            raise self.status.unavailable()
        return "fp_" + hashlib.blake2b(self.status.computes.encode(), digest_size=6).hexdigest()

    def send(self, command: Command) -> None:
        """Send the engine a command, if there is one."""
        if self.wire is not None:
            self.wire.send(command)

    # --- whether there is room ---

    def ensure_room(self, sequences: int) -> None:
        """Refuse a job of this many sequences before any of them is submitted.

        Raises:
            QueueFull: `max_waiting` sequences wait already, or would with these.
            Unavailable: the engine is not ready, or hangs.
        """
        self.status.ensure_usable()
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
        owed = sum(self._speed.owed(stream) for name, stream in self._streams.items() if name not in self._idle)
        return self._speed.seconds_for(owed, time.monotonic())

    # --- open sequences ---

    def submit(self, request: AddRequest, lifetime: Lifetime) -> OutputStream:
        """Queue one sequence of a job that `ensure_room` has let in; the caller closes the stream. `request_id` must be new.

        Raises:
            Unavailable: the engine is not ready, or hangs.
        """
        self.status.ensure_usable()
        if request.request_id in self._streams:
            raise ValueError(f"request id {request.request_id!r} is in use; every sequence needs one of its own")
        stream = OutputStream(request, lifetime, self.sequence_ended)
        self._open(stream, request)
        if lifetime.counted:
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

    def _open(self, stream: OutputStream, request: AddRequest) -> None:
        if not self._streams:
            self._speed.begun(time.monotonic())
        self.send(request)
        self._streams[request.request_id] = stream
        if request.priority == IDLE_PRIORITY:  # no router counts on it, as nobody waits for it
            self._idle.add(request.request_id)
            return
        tokens, left = len(request.prompt_ids) + len(request.generated_ids), request.sampling.max_tokens
        left = 1 if request.hand_over else left - len(request.generated_ids)
        loads = request.kv_wait_seconds > 0
        self.routing.submitted(request.request_id, tokens, left, self.names_of(request), loads=loads)

    @property
    def streams(self) -> Mapping[str, OutputStream]:
        """Its open sequences by their ids."""
        return self._streams

    @property
    def open_count(self) -> int:
        """Sequences that have not ended."""
        return len(self._streams)

    @property
    def waiting(self) -> int:
        """Open sequences that are not running, but for idle ones. What was submitted since the engine's last report counts as
        waiting."""
        stats = self.status.stats
        return max(0, len(self._streams) - len(self._idle) - (stats.running - stats.running_idle))

    @property
    def idle_count(self) -> int:
        """Open sequences that run on what nobody else needs."""
        return len(self._idle)

    def serves(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a sequence of this prompt, the very object, is open here."""
        return any(stream.request.prompt_ids is prompt_ids for stream in self._streams.values())

    def abort(self, request_ids: Iterable[str], reason: str = "aborted") -> None:
        """End these for their readers (finish reason "abort", error `reason`) and in the engine. Ids not open are ignored."""
        known = [request_id for request_id in request_ids if request_id in self._streams]
        for request_id in known:
            stream = self._streams.pop(request_id)
            self._gone(request_id)
            stream.push(Output(request_id=request_id, finish_reason=FinishReason.ABORT, error=reason))
        if known:
            self.send(AbortRequests(request_ids=known))

    def _gone(self, request_id: str) -> None:
        self.routing.ended(request_id)
        self._idle.discard(request_id)

    def abort_all(self, reason: str) -> None:
        """`abort` for everything open."""
        self.abort(list(self._streams), reason)

    def sequence_ended(self, stream: OutputStream) -> None:
        """Its reader has read the end, or has closed it."""
        if self._streams.pop(stream.request_id, None) is not None:  # closed before the engine ended it
            self._gone(stream.request_id)
            self.send(AbortRequests(request_ids=[stream.request_id]))
        lifetime = stream.lifetime
        if lifetime.first_token is not None and lifetime.reason is not FinishReason.ERROR:
            self._speed.ended(lifetime.completion_tokens)
        if lifetime.counted:
            self._metrics.sequence_ended(lifetime, stream.request.tenant)

    # --- what the engine says of them ---

    def engine_ready(self, info: Ready) -> None:
        """An incarnation takes commands."""
        self.routing.limits = ReplicaLimits.of(info)
        self.published.engine_ready()

    def sequences_started(self, request_ids: Sequence[str]) -> None:
        """These are in a step for the first time."""
        self.routing.started(request_ids)
        for request_id in request_ids:
            if (stream := self._streams.get(request_id)) is not None:
                stream.started = True

    def step_ended(self, event: StepOutputs, now: float) -> None:
        """A step ended, or nothing has happened for a while: each output goes to its stream."""
        self.status.stats = event.stats
        self._engine_metrics.step_ended(event)
        self.routing.step_ended(event.step_work, event.step_seconds, event.stats, now)
        busy, served = bool(self._streams), self._deliver_tokens(event.tokens, now)
        for output in event.outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:  # else it was aborted while this was under way
                served += self._deliver(stream, output, now)
        if busy:  # an engine at rest reports, too
            self._speed.served(served, now)

    def _deliver_tokens(self, tokens: Mapping[str, int], now: float) -> int:
        """Hand tokens that are not the first to their readers; how many there were.

        Most sequences of a step were in the one before, too: their gaps are one number, which is counted once.
        """
        streams, served, alike, gap = self._streams, 0, 0, -1.0
        for request_id, token in tokens.items():
            stream = streams.get(request_id)
            if stream is None:  # it was aborted while this was under way
                continue
            served += 1
            if (since := stream.lifetime.token_arrived(now)) == gap:
                alike += 1
            else:
                self._metrics.tokens_arrived(gap, alike)
                gap, alike = -1.0 if since is None else since, int(since is not None)
            stream.push_token(token)
        if served:
            self.status.last_token = now
            self._metrics.tokens_arrived(gap, alike)
        return served

    def _deliver(self, stream: OutputStream, output: Output, now: float) -> int:
        """Hand an output to its reader. Returns how many tokens were served with it: the prompt's, too, if it is the first."""
        served = len(output.token_ids)
        if stream.lifetime.first_token is None and (output.token_ids or output.finish_reason in _COMPLETE):
            served += len(stream.request.prompt_ids)
        if output.times is not None:
            stream.lifetime.absorb(output.times, output.trail, self.name)
            if output.token_ids:  # the first here, or the last
                self.routing.first_token(output.request_id)
            if stream.handed_over is not None and output.token_ids and self.hand_overs is not None:
                self.hand_overs.arrived(self, stream, output.times)
        if output.token_ids:
            self.status.last_token = now
            self._metrics.tokens_arrived(stream.lifetime.token_arrived(now))
        if output.finish_reason is not None:
            del self._streams[output.request_id]
            self._gone(output.request_id)
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

    def engine_ended(self) -> None:
        """The incarnation ended, and `status` says so: what is open goes to `replays`."""
        self.routing.restarted()
        self.published.engine_ended()
        streams, self._streams = self._streams, {}
        self._idle.clear()
        self.replays.inherit(self, list(streams.values()), self._settings.replay_seconds)

    def fail_all(self) -> None:
        """No engine will go on with what is open: it fails with the reason that `status` gives."""
        streams, self._streams = self._streams, {}
        self._idle.clear()
        for stream in streams.values():
            stream.fail(self.status.unavailable())  # one each: a traceback belongs to one task
