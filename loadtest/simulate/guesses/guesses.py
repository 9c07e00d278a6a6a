"""What a replica asks of whatever guesses tokens ahead of its answers."""

from typing import Protocol

from scheduler.drafting import Drafter


class Guesses(Drafter, Protocol):
    """A drafter that knows which of its guesses are right, as there is no model."""

    def accepted(self, request_id: str, place: int, proposed: int) -> int:
        """How many of the guesses for tokens from `place` of an answer on are right."""
        ...
