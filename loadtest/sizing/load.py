"""A trace's load as it is and as it might become: faster, or with longer prompts; and the stretch of it that is the hardest."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from loadtest.simulate.content import length_of
from loadtest.workload.plan import Planned

_OUTPUT_WEIGHT = (
    4  # a token of an answer is so much more work than one of a prompt: the stretch is searched by such sums
)


@dataclass(frozen=True, slots=True)
class Condition:
    """How the load differs from the trace's.

    Attributes:
        load: factor on the rate of arrivals.
        prompts: factor on the lengths of prompts, shared parts included.
    """

    load: float = 1.0
    prompts: float = 1.0

    def apply(self, requests: Sequence[Planned]) -> list[Planned]:
        """The requests under this condition, from time 0."""
        start = requests[0].intended
        return [self._one(request, start) for request in requests]

    def _one(self, request: Planned, start: float) -> Planned:
        intended = (request.intended - start) / self.load
        if self.prompts == 1:
            return replace(request, intended=intended)
        block = max(1, round(request.block_tokens * self.prompts)) if request.blocks else 0
        prompt = max(1, round(length_of(request) * self.prompts))
        if block:  # rounding must not move the end into another block
            many = len(request.blocks)
            prompt = min(max(prompt, (many - 1) * block + 1), many * block)
        return replace(request, intended=intended, prompt_tokens=prompt, block_tokens=block)

    def __str__(self) -> str:
        parts = [f"{self.load:.3g} x the load"] if self.load != 1 else []
        parts += [f"prompts {self.prompts:.3g} x as long"] if self.prompts != 1 else []
        return ", ".join(parts) or "the trace's load"


def busiest(requests: Sequence[Planned], many: int) -> Sequence[Planned]:
    """The `many` requests in a row that bring the most work a second; all of them if there are no more."""
    if len(requests) <= many:
        return requests
    work = [0.0, *accumulate(length_of(each) + _OUTPUT_WEIGHT * each.output_tokens for each in requests)]

    def rate(first: int) -> float:
        seconds = requests[first + many - 1].intended - requests[first].intended
        return (work[first + many] - work[first]) / max(seconds, 1e-9)

    first = max(range(len(requests) - many + 1), key=rate)
    return requests[first : first + many]
