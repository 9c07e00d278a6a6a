"""Several who guess, one after the other: the first who has a guess for a sequence makes it."""

from collections.abc import Sequence

from scheduler.drafting import DraftCandidate, Drafter
from scheduler.types.sampling_params import SamplingParams


class Drafters:
    """A drafter made of others, the surest first.

    Args:
        drafters: who guess; at least one.
    """

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        self._drafters = drafters
        self.name = ", ".join(each.name for each in drafters)
        self.reads_predictions = any(each.reads_predictions for each in drafters)
        self._by: dict[str, Drafter] = {}  # whose guesses of a request are being verified

    def concerns(self, sampling: SamplingParams) -> bool:
        """Whether any may have guesses for the request."""
        return any(each.concerns(sampling) for each in self._drafters)

    def waits(self, request_id: str, sampling: SamplingParams, known: int) -> bool:
        """Whether any of them wants it to."""
        return any(each.concerns(sampling) and each.waits(request_id, sampling, known) for each in self._drafters)

    def propose(self, candidates: Sequence[DraftCandidate]) -> list[Sequence[int]]:
        """The guesses of the first who has some."""
        found: dict[str, Sequence[int]] = {}
        for drafter in self._drafters:
            asked = [c for c in candidates if not found.get(c.request_id) and drafter.concerns(c.sampling)]
            for candidate, guesses in zip(asked, drafter.propose(asked) if asked else (), strict=True):
                if guesses:
                    found[candidate.request_id] = guesses
                    self._by[candidate.request_id] = drafter
        return [found.get(candidate.request_id, ()) for candidate in candidates]

    def verified(self, request_id: str, proposed: int, accepted: int) -> None:
        """Tell who made them."""
        if (drafter := self._by.pop(request_id, None)) is not None:
            drafter.verified(request_id, proposed, accepted)

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """Tell all."""
        for drafter in self._drafters:
            drafter.observe(rows, tokens, seconds)

    def forget(self, request_id: str) -> None:
        """Tell all."""
        self._by.pop(request_id, None)
        for drafter in self._drafters:
            drafter.forget(request_id)
