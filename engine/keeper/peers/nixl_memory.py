"""Memory that NIXL reads from another process: a keeper's slots are offered, and an engine takes blocks from there.

NIXL (`nixl-cu12` and its like, over UCX) chooses the way: RDMA where there is a card for it, else TCP, or memory that both map. It
encrypts nothing and asks nobody for a key, so it is used only where it is asked for (`kv_transfer nixl`). It imports torch.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.ipc.peer_list import nixl_package
from engine.keeper.peers.messages import Here

_SECONDS = 10.0  # for one read
_SPIN_SECONDS = 0.0002


class ReadFailed(Exception):
    """NIXL could not read; the sentence says why."""


class NixlMemory:
    """A keeper's side. Nothing is imported or registered before somebody asks."""

    def __init__(self) -> None:
        self._agent: Any = None
        self._registered: int | None = None
        self._name = ""

    @property
    def offered(self) -> bool:
        """Whether anybody can read."""
        return self._registered is not None

    def here(self, rows: npt.NDArray[np.uint8]) -> Here:
        """Offer these rows, which stay where they are; returns what a reader has to know."""
        address = rows.ctypes.data
        if self._registered != address:
            self._agent, self._name = _new_agent()
            self._agent.register_memory([(address, rows.nbytes, 0, "")], "DRAM")
            self._registered = address
        return Here(agent=self._name, metadata=self._agent.get_agent_metadata(), address=address)

    def progress(self) -> None:
        """Serve those who read now: NIXL moves only while it is asked whether there is news."""
        self._agent.get_new_notifs()


class NixlReader:
    """An engine's side: reads into memory of its own, of which the caller takes copies. For one thread at a time.

    Args:
        blocks: that are read at once, at most.
        block_bytes: of each.
    """

    def __init__(self, blocks: int, block_bytes: int) -> None:
        self.rows = np.zeros((blocks, block_bytes), np.uint8)
        self._bytes = block_bytes
        self._agent, _ = _new_agent()
        self._agent.register_memory([(self.rows.ctypes.data, self.rows.nbytes, 0, "")], "DRAM")

    def meet(self, here: Here) -> None:
        """Get to know a keeper."""
        self._agent.add_remote_agent(here.metadata)

    def forget(self, here: Here) -> None:
        """It is gone."""
        self._agent.remove_remote_agent(here.agent)

    def read(self, here: Here, slots: Sequence[int]) -> None:
        """Fill the first rows with these slots.

        Raises:
            ReadFailed: it says why; what the rows hold is undefined.
        """
        size, base = self._bytes, self.rows.ctypes.data
        into = self._agent.get_xfer_descs([(base + row * size, size, 0) for row in range(len(slots))], "DRAM")
        source = self._agent.get_xfer_descs([(here.address + slot * size, size, 0) for slot in slots], "DRAM")
        try:
            handle = self._agent.initialize_xfer("READ", into, source, here.agent)
            try:
                self._await(handle, self._agent.transfer(handle))
            finally:
                self._agent.release_xfer_handle(handle)
        except ReadFailed:
            raise
        except Exception as error:  # it has a type for each of its reasons
            raise ReadFailed(f"NIXL: {type(error).__name__}: {error}") from error

    def _await(self, handle: Any, state: str) -> None:
        until = time.monotonic() + _SECONDS
        while state != "DONE":
            if state == "ERR":
                raise ReadFailed("NIXL could not read")
            if time.monotonic() > until:
                raise ReadFailed(f"NIXL has not read for {_SECONDS:g} s")
            time.sleep(_SPIN_SECONDS)
            state = self._agent.check_xfer_state(handle)


def _new_agent() -> tuple[Any, str]:
    match nixl_package():
        case "nixl":
            from nixl._api import nixl_agent, nixl_agent_config
        case "nixl_cu13":
            from nixl_cu13._api import nixl_agent, nixl_agent_config
        case _:
            from nixl_cu12._api import nixl_agent, nixl_agent_config
    name = f"headrace-{uuid.uuid4()}"
    # Its own thread would keep a core busy, whether anything is read or not.
    return nixl_agent(name, nixl_agent_config(enable_prog_thread=False)), name
