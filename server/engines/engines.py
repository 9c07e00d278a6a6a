"""The engines of one server, by name. A prompt goes to one of them: where there are several, a router says to which."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import ceil
from types import MappingProxyType

from scheduler.router.deadlines import Deadline, DeadlineFor, Promise, Promises
from scheduler.router.least_work import LeastWork
from scheduler.router.policy import Router
from scheduler.router.role_switching import PhaseBounds
from scheduler.router.split import Placement, Split
from scheduler.router.view import ReplicaView, Role
from scheduler.types.messages import IDLE_PRIORITY, AddRequest, Ready
from scheduler.types.output_kind import OutputKind
from scheduler.types.step import ChunkPhase
from server.engines.client import EngineClient
from server.engines.disaggregation.hand_overs import HandOvers, Peer
from server.engines.prompt_names import PromptNames
from server.engines.replay import Host, Replays
from server.engines.spread import SpreadJob
from server.errors import Conflict, DeadlineRefused, Unavailable
from server.stream.job import Job
from server.stream.output_stream import OutputStream
from server.telemetry.hand_overs import HandOverMetrics

_LEAST_KV_WAIT, _MOST_KV_WAIT = 0.5, 2.0  # seconds: most hand-overs take some hundredths of one
_HOPE = {"starting": 0, "ready": 1, "stopped": 2, "dead": 3}  # the sooner it may take requests, the less


class Engines:
    """Holds the clients, and chooses one for each job.

    Args:
        clients: one or more, each with a name of its own.
        router: asked for each job, where there are several.
        metrics: counts hand-overs.
        bounds: by which roles switch; None: they do not.
    """

    def __init__(
        self,
        clients: Sequence[EngineClient],
        router: Router | None = None,
        metrics: HandOverMetrics | None = None,
        *,
        bounds: PhaseBounds | None = None,
    ) -> None:
        if not clients:
            raise ValueError("a server needs an engine")
        self.by_name: Mapping[str, EngineClient] = MappingProxyType({client.name: client for client in clients})
        if len(self.by_name) < len(clients):
            raise ValueError(f"two engines have the same name: {', '.join(client.name for client in clients)}")
        self._clients = tuple(clients)
        self._router = router or LeastWork()
        self._names = PromptNames()
        self._replays = Replays(clients, self._best_to_go_on)
        self._split = Split(self._router, bounds=bounds)
        hand_overs = HandOvers(clients, self._best_decoder, self._kv_wait, self._split, metrics or HandOverMetrics())
        self._promises = Promises()
        self._knows_blocks = False
        for client in clients:
            client.replays = self._replays
            if len(clients) > 1:
                client.hand_overs = hand_overs
        if len(clients) > 1:
            self._know_blocks()

    def __iter__(self) -> Iterator[EngineClient]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def ready(self) -> bool:
        """Whether any engine takes requests."""
        return any(client.status.usable for client in self._clients)

    @property
    def info(self) -> Ready | None:
        """What the engine with the shortest context said when it became ready, of those that take requests if any does: what is
        valid for it is valid for all, as they serve the same model."""
        known = [
            (client.status.usable, client.status.info) for client in self._clients if client.status.info is not None
        ]
        usable = [info for use, info in known if use] or [info for _, info in known]
        return min(usable, key=lambda info: info.context, default=None)

    def _know_blocks(self) -> None:
        """From now on know which engine has which KV blocks: to choose one of several, or to say how long a prompt will take."""
        if self._knows_blocks:
            return
        self._knows_blocks = True
        for client in self._clients:
            client.names_of = partial(self._names_at, client)
            client.published.blocks.keep()

    def choose(self, job: Job, received: float | None = None) -> EngineClient | SpreadJob:
        """The engine for one job, or, if it has several prompts, what spreads them over engines. The sequences of one prompt go to
        one engine, so that they share its blocks. If another one is to go on after their first token, they are marked.

        Args:
            job: if it has a deadline that is accepted, it is given a promise.
            received: when it arrived, in `time.monotonic()` seconds; None: now.

        Raises:
            Unavailable: no engine is ready, or all that are hang or are drained.
            DeadlineRefused: its deadline would not be met.
        """
        if not self.ready:
            raise self.unavailable()
        if job.deadline is not None:
            self._know_blocks()
        elif len(self._clients) == 1:
            return self._clients[0]
        first, last = job.sequences[0].request, job.sequences[-1].request
        taking = self._taking(len(job.sequences))
        if first.priority == IDLE_PRIORITY:  # where the fewest are; what is the soonest does not matter
            return min(taking, key=lambda client: client.idle_count)
        if first.prompt_ids is not last.prompt_ids:
            return SpreadJob(_alike(taking), self._place)
        views = self._views(first, taking)
        placement = self._placement(first, views)
        if job.deadline is not None:
            waited = 0.0 if received is None else time.monotonic() - received
            job.promise = self._promise(job.deadline, first, placement, views, waited)
        for sequence in job.sequences:
            sequence.request.hand_over = placement.hand_over
        return self._clients[placement.index]

    def _place(self, request: AddRequest, taking: Collection[EngineClient]) -> EngineClient:
        """Which of those that take requests gets a prompt; marks the sequence if another one is to go on with it."""
        placement = self._placement(request, self._views(request, taking))
        request.hand_over = placement.hand_over
        return self._clients[placement.index]

    def _placement(self, request: AddRequest, views: Sequence[ReplicaView]) -> Placement:
        if request.beams is not None:  # a search, which mostly decodes, ends where it begins
            index = self._router.choose(request.prompt_ids, views, ChunkPhase.DECODE)
            return Placement(index, index)
        decodes = request.produces is OutputKind.TOKENS and request.sampling.max_tokens > 1
        return self._split.place(request.prompt_ids, views, decodes=decodes)

    def _promise(
        self,
        deadline: Deadline,
        request: AddRequest,
        placement: Placement,
        views: Sequence[ReplicaView],
        waited: float,
    ) -> Promise:
        """That the deadline of a request will be met, which arrived so many seconds ago and is placed so."""
        quote = self._promises.quote(
            deadline,
            views[placement.index],
            views[placement.decodes],
            request.sampling.max_tokens,
            hand_over_seconds=self._split.hand_over_seconds,
            waited=waited,
        )
        if quote is None or deadline.allows(quote):
            return self._promises.promise(deadline, quote)
        quote_ms = round(1000 * quote, 1)
        what = "first token" if deadline.until is DeadlineFor.FIRST_TOKEN else "end"
        raise DeadlineRefused(
            f"`deadline_ms` is {1000 * deadline.seconds:g}, and the {what} can be expected after {quote_ms:.0f} ms.",
            quote_ms=quote_ms,
            headers={"Retry-After": str(max(1, ceil(quote - deadline.seconds)))},
        )

    def change_role(self, client: EngineClient, role: Role) -> None:
        """Say what an engine is meant for. New requests heed it, open ones stay where they are.

        Raises:
            Conflict: no other engine that is there, or will be, would be meant for a phase.
        """
        for phase in ChunkPhase:
            others = (
                each for each in self._clients if each is not client and each.status.state in ("starting", "ready")
            )
            if not role.takes(phase) and not any(each.role.takes(phase) for each in others):
                raise Conflict(
                    f"{client.name} cannot become a {role.value} engine: no other one would be meant for {phase.value}."
                )
        client.role = role

    def _taking(self, sequences: int) -> Collection[EngineClient]:
        """Those that take a job of so many sequences. One whose queue is full counts only where all are: then it refuses."""
        usable = [client for client in self._clients if client.status.usable]
        return [client for client in usable if client.has_room(sequences)] or usable

    def _views(self, request: AddRequest, taking: Collection[Host]) -> list[ReplicaView]:
        """All engines, for a job of which `request` is the first sequence."""
        now, tokens = time.monotonic(), len(request.prompt_ids) + len(request.generated_ids)
        return [
            client.routing.view(
                tokens, self._names_at(client, request), now, role=client.role, available=client in taking
            )
            for client in self._clients
        ]

    def _best_decoder(self, request: AddRequest, able: Sequence[Peer]) -> Peer:
        """Which of these engines goes on with a request whose prompt is computed."""
        views = self._views(request, able)
        return self._clients[self._router.choose(request.prompt_ids, views, ChunkPhase.DECODE)]

    def _best_to_go_on(self, stream: OutputStream, able: Sequence[Host]) -> Host:
        """Which of these goes on with a sequence whose engine has ended: all that is known is computed there, whatever its role."""
        request = replace(stream.request, generated_ids=stream.generated_ids)
        views = [replace(view, role=Role.MIXED) for view in self._views(request, able)]
        return self._clients[self._router.choose(request.prompt_ids, views, ChunkPhase.PREFILL)]

    def _kv_wait(self, request: AddRequest) -> float:
        """How long a request may wait for KV that is being saved: about as long as it would take to compute it."""
        seconds = len(request.prompt_ids) * max(client.routing.cost.token_seconds for client in self._clients)
        return min(max(seconds, _LEAST_KV_WAIT), _MOST_KV_WAIT)

    def _names_at(self, client: EngineClient, request: AddRequest) -> Sequence[bytes]:
        """The names that this engine gives to the blocks of a prompt."""
        return self._names.of(request, client.status.info)

    def abort_all(self, reason: str) -> None:
        """End everything open, for its readers and in the engines; `reason` is the error they read."""
        for client in self._clients:
            client.abort_all(reason)
        self._replays.abort_all(reason)

    def unavailable(self) -> Unavailable:
        """Why no request is taken now, with Retry-After, as the engine says that may be ready first."""
        return min(self._clients, key=lambda client: _HOPE[client.status.state]).status.unavailable()


def _alike(engines: Collection[EngineClient]) -> list[EngineClient]:
    """The most of these that compute the same: parts of one answer may not come from others."""
    groups: dict[str | None, list[EngineClient]] = {}
    for engine in engines:
        groups.setdefault(engine.status.computes, []).append(engine)
    return max(groups.values(), key=len)
