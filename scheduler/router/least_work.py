"""Routing by load alone."""

from collections.abc import Sequence

from scheduler.router.policy import able, shortest
from scheduler.router.view import ReplicaView
from scheduler.types.step import ChunkPhase


class LeastWork:
    """For a prompt, where prompts wait the shortest time; for decodes, where tokens follow each other the soonest. Of several
    the one with the fewest open sequences, and of these the first."""

    def choose(self, prompt_ids: Sequence[int], replicas: Sequence[ReplicaView], phase: ChunkPhase) -> int:
        """The one with the least to do."""
        decodes = phase is ChunkPhase.DECODE

        def seconds(index: int) -> float:
            return replicas[index].decode_seconds if decodes else replicas[index].waiting_seconds

        return min(shortest(able(replicas, phase), seconds), key=lambda index: replicas[index].open)
