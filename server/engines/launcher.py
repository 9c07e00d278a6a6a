"""Who starts engines; and those on this machine: their parts of it, and what they share."""

import os
from typing import TYPE_CHECKING, Protocol

from configs.model.source import ModelSource
from configs.settings import Settings
from engine.ipc.shared_memory import shared_memory
from server.engines.commands import engine_commands
from server.engines.launch import Incarnation, launch
from server.engines.supervision.keeper import KeeperSupervisor

if TYPE_CHECKING:
    from server.engines.supervision.stop import Keepers  # with the HTTP stack


class Launcher(Protocol):
    """Starts the engines of a server, each again whenever it has ended: on this machine or elsewhere.

    Attributes:
        keepers: of the KV tiers below the engines' devices, wherever they are; None: there are no such tiers.
    """

    keepers: "Keepers | None"

    def launch(self, name: str) -> Incarnation:
        """Start the engine of this name; returns at once.

        Raises:
            OSError: the process cannot be started, or a socket not bound; nothing is left behind.
        """

    def close(self) -> None:
        """Release what the engines share. They have been closed before."""


class LocalLauncher:
    """Launches engines of this machine. Making it starts the keeper, where several engines have a tier below their devices.

    Args:
        settings: the server's.
        source: the model's files.

    Attributes:
        keepers: one, if there are tiers.

    Raises:
        CannotShare: the machine is too small for so many engines.
        OSError: the keeper cannot be started.
    """

    def __init__(self, settings: Settings, source: ModelSource) -> None:
        self._keeper: KeeperSupervisor | None = None
        self._weights = shared_memory("headrace-weights") if settings.engines > 1 else None
        try:
            self._keeper = KeeperSupervisor(settings) if settings.keeps else None
            address = None if self._keeper is None else self._keeper.address
            self._commands = engine_commands(settings, source, weights=self._weights, keeper=address)
        except BaseException:
            self.close()
            raise
        self.keepers: Keepers | None = self._keeper
        kept = () if self._keeper is None else self._keeper.descriptors
        self._inherited = [*kept, *([] if self._weights is None else [self._weights])]

    def launch(self, name: str) -> Incarnation:
        """Start the engine of this name."""
        return launch(self._commands[name], self._inherited)

    def close(self) -> None:
        """End the keeper, and give the memory back. May be called again."""
        if self._keeper is not None:
            self._keeper.close()
        if self._weights is not None:
            os.close(self._weights)
            self._weights = None
