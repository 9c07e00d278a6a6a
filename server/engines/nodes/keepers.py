"""The keepers of a cluster's nodes, as the server sees them."""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import replace

from server.engines.nodes.cluster import EngineCluster, NodeLost
from server.engines.supervision.keeper import KeeperReport

_LOOK_SECONDS = 2.0


class NodeKeepers:
    """Each is looked after by its node; here it is asked now and then how they are doing.

    Args:
        cluster: that has the nodes.
    """

    def __init__(self, cluster: EngineCluster) -> None:
        self._cluster = cluster
        self._reports: Mapping[str, KeeperReport] = {}
        self._stop = asyncio.Event()

    def reports(self) -> Mapping[str, KeeperReport]:
        """How each is doing, by the address of its node. A node that is lost is none of them."""
        return self._reports

    async def run(self) -> None:
        """Ask until `stop`."""
        while not self._stop.is_set():
            reports = await self._ask()
            if self._stop.is_set():  # meanwhile
                return
            self._reports = reports
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _LOOK_SECONDS)

    async def _ask(self) -> Mapping[str, KeeperReport]:
        try:
            return await asyncio.to_thread(self._cluster.keepers)
        except NodeLost as error:
            last = self._reports.items()
            return {node: replace(each, state="hanging", trouble=str(error)) for node, each in last}

    async def stop(self, flush_seconds: float, grace: float = 2.0) -> None:
        """Let them write for so long what would be lost with them, and end within `grace` seconds more."""
        self._stop.set()
        self._reports = {node: replace(each, state="stopped") for node, each in self._reports.items()}
        await asyncio.to_thread(self._cluster.stop, flush_seconds, grace)
