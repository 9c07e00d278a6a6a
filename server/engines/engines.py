"""The engines of one server, by name. A job goes to one of them: to the usable one with the fewest open sequences."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from scheduler.types.messages import Ready
from server.engines.client import EngineClient
from server.errors import Unavailable


class Engines:
    """Holds the clients, and chooses one for each job.

    Args:
        clients: one or more, each with a name of its own.
    """

    def __init__(self, clients: Sequence[EngineClient]) -> None:
        if not clients:
            raise ValueError("a server needs an engine")
        self.by_name: Mapping[str, EngineClient] = MappingProxyType({client.name: client for client in clients})
        if len(self.by_name) < len(clients):
            raise ValueError(f"two engines have the same name: {', '.join(client.name for client in clients)}")
        self._clients = tuple(clients)

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

    def choose(self) -> EngineClient:
        """The engine for one job. All its sequences go there, so that they share their prompt's blocks.

        Raises:
            Unavailable: no engine is ready, or all that are hang.
        """
        if not self.ready:
            raise self.unavailable()
        return self._by_load()[0]

    def abort_all(self, reason: str) -> None:
        """End everything open, for its readers and in the engines; `reason` is the error they read."""
        for client in self._clients:
            client.abort_all(reason)

    def unavailable(self) -> Unavailable:
        """Why no request is taken now, with Retry-After, as the engine says that may be ready first."""
        hope = {"starting": 0, "stopped": 1, "dead": 2}
        return min(self._clients, key=lambda client: hope.get(client.state, 0)).unavailable()

    def _by_load(self) -> list[EngineClient]:
        """All clients, those first that take requests, then by their number of open sequences."""
        return sorted(self._clients, key=lambda client: (not client.usable, client.open_count))
