"""The contract of a routing policy, and what all of them have in common."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from scheduler.router.view import ReplicaView
from scheduler.types.step import ChunkPhase

_SAME = 1.1  # expected times this close to the shortest count as equal: they are no better known


class Router(Protocol):
    """Chooses for each request once a phase, in the order of arrival."""

    def choose(self, prompt_ids: Sequence[int], replicas: Sequence[ReplicaView], phase: ChunkPhase) -> int:
        """The index of the replica that gets the request.

        Args:
            prompt_ids: of the request.
            replicas: all there are, as they are for this request; the same ones each time, in the same order.
            phase: that the request is in.

        Raises:
            ValueError: no replica is available.
        """
        ...


def able(replicas: Sequence[ReplicaView], phase: ChunkPhase) -> list[int]:
    """The indices of those that come into question, at least one: of the available ones those that are meant for the phase, if
    there are any, and of these those that are not full, if there are any.

    Raises:
        ValueError: none is available.
    """
    found = [index for index, replica in enumerate(replicas) if replica.available]
    if not found:
        raise ValueError(f"none of {len(replicas)} replicas is available")
    found = [index for index in found if replicas[index].role.takes(phase)] or found
    return [index for index in found if not replicas[index].full] or found


def shortest(indices: Iterable[int], seconds: Callable[[int], float]) -> list[int]:
    """Those with the shortest time, and those with about the same."""
    times = {index: seconds(index) for index in indices}
    limit = _SAME * min(times.values())
    return [index for index, time in times.items() if time <= limit]
