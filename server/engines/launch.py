"""What is made for each incarnation of an engine, its process and the wire to it."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.engines.process import EngineProcess, RunningProcess
from server.engines.wire import EngineWire


class CannotLaunch(Exception):
    """There is no place for the engines that are asked for; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Incarnation:
    """One life of an engine."""

    process: RunningProcess
    wire: EngineWire

    def close(self) -> None:
        """Kill the process if it is still alive, and release everything. May be called again."""
        self.wire.close()
        self.process.close()


def launch(arguments: Sequence[str], descriptors: Sequence[int] = ()) -> Incarnation:
    """Start an engine process on this machine, which has these descriptors of ours, and bind the sockets it will connect to.

    Raises:
        OSError: the process cannot be started, or a socket not bound; nothing is left behind.
    """
    process = EngineProcess(arguments, descriptors)
    try:
        return Incarnation(process, EngineWire(process.endpoints))
    except BaseException:
        process.close()
        raise
