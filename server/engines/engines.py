"""The engines of one server, by name. A job goes to one of them: where there are several, a router says to which."""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from scheduler.router.least_work import LeastWork
from scheduler.router.policy import Router
from scheduler.router.view import ReplicaView
from scheduler.types.messages import AddRequest, Ready
from scheduler.types.step import ChunkPhase
from server.engines.client import EngineClient
from server.engines.prompt_names import PromptNames
from server.engines.replay import Replays
from server.errors import Unavailable
from server.stream.job import Job

_HOPE = {"starting": 0, "ready": 1, "stopped": 2, "dead": 3}  # the sooner it may take requests, the less


class Engines:
    """Holds the clients, and chooses one for each job.

    Args:
        clients: one or more, each with a name of its own.
        router: asked for each job, where there are several.
    """

    def __init__(self, clients: Sequence[EngineClient], router: Router | None = None) -> None:
        if not clients:
            raise ValueError("a server needs an engine")
        self.by_name: Mapping[str, EngineClient] = MappingProxyType({client.name: client for client in clients})
        if len(self.by_name) < len(clients):
            raise ValueError(f"two engines have the same name: {', '.join(client.name for client in clients)}")
        self._clients = tuple(clients)
        self._router = router or LeastWork()
        self._names = PromptNames()
        self._replays = Replays(clients)
        for client in clients:
            client.replays = self._replays
            if len(clients) > 1:
                client.names_of = partial(self._names_at, client)

    def __iter__(self) -> Iterator[EngineClient]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def ready(self) -> bool:
        """Whether any engine takes requests."""
        return any(client.usable for client in self._clients)

    @property
    def info(self) -> Ready | None:
        """What the engine with the shortest context said when it became ready, of those that take requests if any does: what is
        valid for it is valid for all, as they serve the same model."""
        known = [(client.usable, client.info) for client in self._clients if client.info is not None]
        usable = [info for use, info in known if use] or [info for _, info in known]
        return min(usable, key=lambda info: info.context, default=None)

    def choose(self, job: Job) -> EngineClient:
        """The engine for one job. All its sequences go there, so that they share their prompt's blocks.

        Raises:
            Unavailable: no engine is ready, or all that are hang or are drained.
        """
        if not self.ready:
            raise self.unavailable()
        if len(self._clients) == 1:
            return self._clients[0]
        first = job.sequences[0].request
        chosen = self._router.choose(first.prompt_ids, self._views(first, len(job.sequences)), ChunkPhase.PREFILL)
        return self._clients[chosen]

    def _views(self, request: AddRequest, sequences: int) -> list[ReplicaView]:
        """All engines, for a job of so many sequences, of which `request` is the first.

        One whose queue is full counts only where all are: then it refuses.
        """
        taking = [client.usable and client.has_room(sequences) for client in self._clients]
        if not any(taking):
            taking = [client.usable for client in self._clients]
        now = time.monotonic()
        return [
            client.routing.view(len(request.prompt_ids), self._names_at(client, request), now, available=able)
            for able, client in zip(taking, self._clients, strict=True)
        ]

    def _names_at(self, client: EngineClient, request: AddRequest) -> Sequence[bytes]:
        """The names that this engine gives to the blocks of a prompt."""
        return self._names.of(request, client.info)

    def abort_all(self, reason: str) -> None:
        """End everything open, for its readers and in the engines; `reason` is the error they read."""
        for client in self._clients:
            client.abort_all(reason)
        self._replays.abort_all(reason)

    def unavailable(self) -> Unavailable:
        """Why no request is taken now, with Retry-After, as the engine says that may be ready first."""
        return min(self._clients, key=lambda client: _HOPE[client.state]).unavailable()
