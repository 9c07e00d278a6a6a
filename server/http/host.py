"""What uvicorn's server lends its connections: the application, the headers of every answer, books of connections and tasks."""

import asyncio
from typing import Any, cast

from starlette.types import ASGIApp, Scope
from uvicorn.config import Config
from uvicorn.server import ServerState

from server.http.cycle import RequestCycle, Wire
from server.http.head import RequestHead


class WebHost:
    """The server, as a connection sees it.

    Args:
        config: of uvicorn's server; holds the application.
        state: uvicorn's books of connections and tasks, and the headers of every answer.
        app_state: what the application keeps in `request.state`.
    """

    def __init__(self, config: Config, state: ServerState, app_state: dict[str, Any]) -> None:
        if not config.loaded:
            config.load()
        self._app = cast(ASGIApp, config.loaded_app)
        self._root_path = config.root_path
        self._state = state
        self._app_state = app_state

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Those of every answer."""
        return self._state.default_headers

    def enter(self, connection: asyncio.BufferedProtocol) -> None:
        """A connection is made."""
        self._state.connections.add(connection)  # type: ignore[arg-type]  # it knows uvicorn's own protocols only

    def leave(self, connection: asyncio.BufferedProtocol) -> None:
        """It is lost. May be called again."""
        self._state.connections.discard(connection)

    def begin(self, head: RequestHead, ends: dict[str, Any], wire: Wire) -> RequestCycle:
        """Give a request to the application, in a task of its own."""
        cycle = RequestCycle(self.scope(head, ends), wire, head.keep_alive, head.expects_continue)
        task = asyncio.get_running_loop().create_task(cycle.run(self._app))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)
        return cycle

    def scope(self, head: RequestHead, ends: dict[str, Any]) -> Scope:
        """A request's head as ASGI has it.

        Args:
            head: of the request.
            ends: `client` and `server`, each an address and a port, and the `scheme`.
        """
        stripped = not f"{head.path}/".startswith(f"{self._root_path}/")
        root = self._root_path if stripped else ""
        # A proxy that strips nothing may be asked for its bare path.
        slash = "/" if head.path == self._root_path else ""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.version,
            "root_path": self._root_path,
            "method": head.method,
            "path": root + head.path + slash,
            "raw_path": root.encode("ascii") + head.raw_path + slash.encode("ascii"),
            "query_string": head.query,
            "headers": head.headers,
            "state": self._app_state.copy(),
            **ends,
        }
