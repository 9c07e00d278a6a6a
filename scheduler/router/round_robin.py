"""Routing in turns."""

from collections.abc import Sequence
from itertools import count

from scheduler.router.policy import able
from scheduler.router.view import ReplicaView
from scheduler.types.step import ChunkPhase


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._turn = count()

    def choose(self, prompt_ids: Sequence[int], replicas: Sequence[ReplicaView], phase: ChunkPhase) -> int:
        """The next in turn."""
        found = able(replicas, phase)
        return found[next(self._turn) % len(found)]
