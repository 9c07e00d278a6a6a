"""The guesses of a recorded run: those that were right, each time as many as brought tokens together.

So a simulation of that run has the steps that it had, and their work can be held against the time that they took. Guesses that were
wrong are left out: no record shows them.
"""

from collections.abc import Sequence

from loadtest.report.token_times import TokenEvent
from scheduler.drafting import DraftCandidate
from scheduler.types.sampling_params import SamplingParams


class RecordedAnswers:
    """The drafter of the only replica.

    Args:
        answers: the events of each answer, in the order of arrival: when text came, and with how many tokens.
    """

    name = "recorded answers"
    reads_predictions = False

    def __init__(self, answers: Sequence[Sequence[TokenEvent]]) -> None:
        self._left = [list(_left(events)) for events in answers]

    def concerns(self, sampling: SamplingParams) -> bool:
        """All."""
        return True

    def waits(self, request_id: str, sampling: SamplingParams, known: int) -> bool:
        """Always, as on a CPU."""
        return True

    def propose(self, candidates: Sequence[DraftCandidate]) -> list[list[int]]:
        """What came together with the next token. Ids say nothing."""
        found = []
        for each in candidates:
            left, place = self._left[int(each.request_id)], len(each.token_ids) - each.prompt_length
            found.append([0] * min(each.most, left[place] if place < len(left) else 0))
        return found

    def accepted(self, request_id: str, place: int, proposed: int) -> int:
        """All."""
        return proposed

    def verified(self, request_id: str, proposed: int, accepted: int) -> None:
        """Nothing is learned."""

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """Nothing is weighed."""

    def forget(self, request_id: str) -> None:
        """Nothing is kept."""


def _left(events: Sequence[TokenEvent]) -> list[int]:
    """Of each token of an answer, how many came after it in the same event."""
    return [left for _, count in events for left in range(count - 1, -1, -1)]
