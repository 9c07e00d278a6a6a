"""The waiting line: ordered by priority, first come first served within one. A preempted request keeps its place."""

from bisect import insort
from collections.abc import Iterator

from scheduler.request import Request


def _rank(request: Request) -> tuple[int, int]:
    return request.priority, request.order


class WaitingLine:
    """Requests that hold no blocks."""

    def __init__(self) -> None:
        self._line: list[Request] = []

    def __len__(self) -> int:
        return len(self._line)

    def __contains__(self, request: object) -> bool:
        return request in self._line

    def __iter__(self) -> Iterator[Request]:
        return iter(self._line)

    def add(self, request: Request) -> None:
        """Put a request where its priority and its arrival belong."""
        insort(self._line, request, key=_rank)

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it stands."""
        self._line.remove(request)
