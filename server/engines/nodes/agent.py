"""What runs on each node of a cluster: starts engines there, and the keeper that they share. Knows nothing of the cluster.

Processes that it has started end with it, as they do with a server on its own machine: their stdin closes.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from configs.model.source import ModelError, ModelSource, resolve_model
from configs.settings import Settings
from engine.ipc.child import module_arguments
from engine.ipc.curve import KeyPair, new_keys, peer_keys
from engine.ipc.log_lines import configure_lines
from engine.ipc.peer_list import KeeperPeer, nixl_package
from engine.ipc.share import Share
from engine.ipc.shared_memory import shared_memory
from server.engines.commands import CannotShare, machine_says
from server.engines.nodes.cluster import NodeRefuses
from server.engines.nodes.door import NodeDoor, piped
from server.engines.process import Endpoints, EngineProcess
from server.engines.supervision.keeper import KeeperReport, KeeperSupervisor

_log = logging.getLogger("headrace.engine")
# A cluster may say how many threads its own processes start; an engine is told by its share.
_NOT_OURS = ("OMP_NUM_THREADS",)


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the server tells each node.

    Attributes:
        settings: as `Settings.for_engine` writes them.
        model: a path on the node or a hub name; None: the embedded one.
        version: of headrace.
    """

    settings: str
    model: str | None
    version: str


class NodeAgent:
    """One of a node. Calls may come from any thread.

    Args:
        address: IP address of the node.
        seats: engines that it has room for: each has an equal part of its memory.
        deployment: what is to be served.
    """

    def __init__(self, address: str, seats: int, deployment: Deployment) -> None:
        self.address = address
        self._seats = seats
        self._settings = Settings.model_validate_json(deployment.settings)
        self._deployment = deployment
        text = f"%(asctime)s %(levelname)s node {address}: %(message)s"
        configure_lines(self._settings.log_level, self._settings.log_format, f"node {address}", text)
        self._lock = threading.Lock()
        self._keys: dict[str, KeyPair] = {}
        self._processes: dict[str, EngineProcess] = {}
        self._source: ModelSource | None = None
        self._memory = 0
        self._keeper: KeeperSupervisor | None = None
        self._door: NodeDoor | None = None
        self._weights: int | None = None
        self._loop = asyncio.new_event_loop()  # the keeper's supervisor's
        self._thread = threading.Thread(target=self._run_loop, name="node", daemon=True)
        self._thread.start()

    def prepare(self, engine: str) -> bytes:
        """See to it that an engine can be started here, and make its keys. Returns the public one.

        Raises:
            NodeRefuses: it cannot.
        """
        with self._lock:
            if self._source is None:
                self._make_ready()
            self._keys[engine] = new_keys()
            return self._keys[engine].public

    def start(self, engine: str, devices: list[str], commands: str, events: str, server: bytes) -> int:
        """Start it, after the one before has been ended. Returns its process id.

        Raises:
            NodeRefuses: no process can be started, or `prepare` was not called.
        """
        with self._lock:
            keys, source = self._keys.pop(engine, None), self._source
            if keys is None or source is None:
                raise NodeRefuses(f"node {self.address}: {engine} has no keys here")
            if (before := self._processes.pop(engine, None)) is not None:
                before.close()
            try:
                process = self._started(engine, devices, Endpoints(commands, events), peer_keys(keys, server).encode())
            except OSError as error:
                raise NodeRefuses(f"node {self.address}: the engine's process cannot be started: {error}") from error
            self._processes[engine] = process
            return process.pid

    def ended(self, engine: str, pid: int) -> int:
        """Wait until that process has ended. Returns its exit code."""
        process = self._processes.get(engine)
        if process is None or process.pid != pid:  # another one has taken its place
            return -9
        process.wait()
        return process.exit_code or 0

    def kill(self, engine: str, pid: int) -> None:
        """End it at once."""
        process = self._processes.get(engine)
        if process is not None and process.pid == pid:
            process.kill()

    def peer(self) -> KeeperPeer | None:
        """Its keeper, as other nodes reach it; None: there are no tiers, or `prepare` was not called."""
        return None if self._door is None else self._door.peer

    def meet(self, peers: list[KeeperPeer]) -> None:
        """From now on these are the keepers of this server."""
        if self._door is not None:
            self._door.meet(peers)

    def keeper(self) -> KeeperReport | None:
        """How its keeper is doing; None as for `peer`."""
        if self._keeper is None:
            return None
        return replace(self._keeper.reports()[""], pid=None)

    def stop(self, flush_seconds: float, grace: float) -> None:
        """The engines have ended: let the keeper write for so long what would be lost with it, and end."""
        if self._keeper is not None:
            self._await(self._keeper.stop(flush_seconds, grace))

    def close(self) -> None:
        """End everything at once."""
        with self._lock:
            for process in self._processes.values():
                process.close()
            if self._keeper is not None:
                self._keeper.close()
            if self._door is not None:
                self._door.close()
            if self._weights is not None:
                os.close(self._weights)
            self._keeper = self._weights = None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run_loop(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(cancel_others())
        self._loop.close()

    def _make_ready(self) -> None:
        """Find the model, measure the machine before anything is loaded, start the keeper."""
        here = version("headrace")
        if here != self._deployment.version:
            text = f"has headrace {here}, the server {self._deployment.version}: install the same one"
            raise NodeRefuses(f"node {self.address} {text}")
        if self._settings.kv_transfer == "nixl" and nixl_package() is None:
            text = "kv_transfer is nixl, but NIXL is not installed: pip install 'headrace[nixl]'"
            raise NodeRefuses(f"node {self.address}: {text}")
        try:
            source = resolve_model(self._deployment.model)
        except ModelError as error:
            text = "each node needs the model's files where the server has them"
            raise NodeRefuses(f"node {self.address}: {str(error).rstrip('.')}; {text}") from error
        try:
            match machine_says():
                case {"memory": {"amount": int(memory)}}:
                    self._memory = memory // self._seats
                case said:
                    raise CannotShare(f"the machine could not be measured: {said}")
            # What is there from an attempt that was refused stays.
            if self._seats > 1 and self._weights is None:
                self._weights = shared_memory("headrace-weights")
            if self._settings.keeps:
                self._door = self._door or NodeDoor(self.address)
                self._keeper = KeeperSupervisor(self._settings, door=self._door.hinges)
                asyncio.run_coroutine_threadsafe(self._keeper.run(), self._loop)
        except (CannotShare, OSError) as error:
            raise NodeRefuses(f"node {self.address}: {error}") from error
        self._source = source

    def _started(self, engine: str, devices: list[str], endpoints: Endpoints, keys: bytes) -> EngineProcess:
        assert self._source is not None
        share = Share(
            engine=engine,
            engines=self._seats,
            memory=self._memory,
            cores=self._settings.cpus_per_engine,
            devices=devices,
            weights=None if devices else self._weights,
        )
        kept = () if self._keeper is None else self._keeper.descriptors
        shared = () if self._weights is None else (self._weights,)
        arguments = [
            *module_arguments("engine", self._settings, self._source),
            *("--share", share.encode()),
            *(("--keeper", self._keeper.address.encode()) if self._keeper else ()),
        ]
        with ExitStack() as stack:
            read = stack.enter_context(piped(keys))
            own = stack.enter_context(self._door.key()) if self._door else ([], [])
            line, descriptors = [*arguments, "--keys", str(read), *own[0]], (*kept, *shared, read, *own[1])
            return EngineProcess(line, descriptors, endpoints, environment_of(devices))

    def _await(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def cancel_others() -> None:
    """Cancel all other tasks of the running loop, and wait for their ends."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def environment_of(devices: list[str]) -> Mapping[str, str]:
    """An engine sees the GPUs that are reserved for it, and no other."""
    for name in _NOT_OURS:
        os.environ.pop(name, None)
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices)}
