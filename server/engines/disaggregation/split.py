"""Which jobs are split: their prompt is computed by a prefill engine, and a decode engine goes on after the first token.

It is decided by expected time. If a decode engine does it all, the request waits for what it does there, and each sequence that
decodes there waits for the prompt (DistServe, Zhong et al., OSDI 2024, section 2.3, measures that interference). If the job is
split, the request waits for what the prefill engine does, and for the hand-over. So short prompts and those that are mostly cached
where they are decoded are not split, and neither are any while so much waits for prefill engines that it would take longer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.router.policy import Router
from scheduler.router.view import ReplicaView, Role
from scheduler.types.step import ChunkPhase

_GUESS = 0.05  # seconds of a hand-over before one was seen
_MEMORY = 0.9  # weight of those before beside a new one


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a job goes: the index of a replica, and whether another goes on after the first token."""

    index: int
    hand_over: bool


class Split:
    """The decision for one pool of replicas.

    Args:
        router: chooses among the replicas that take a phase.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._hand_over_seconds = _GUESS

    def handed_over(self, seconds: float) -> None:
        """A hand-over took so long, from the first token to the next."""
        self._hand_over_seconds = _MEMORY * self._hand_over_seconds + (1 - _MEMORY) * seconds

    def place(self, prompt_ids: Sequence[int], replicas: Sequence[ReplicaView], *, decodes: bool = True) -> Placement:
        """Where a prompt is computed, and whether its decodes go elsewhere.

        Args:
            prompt_ids: of the request.
            replicas: all there are, as they are for this request.
            decodes: whether it has any.

        Raises:
            ValueError: no replica is available.
        """
        first = self._router.choose(prompt_ids, replicas, ChunkPhase.PREFILL)
        if replicas[first].role is not Role.PREFILL or not decodes:
            return Placement(first, False)
        second = self._router.choose(prompt_ids, replicas, ChunkPhase.DECODE)
        if replicas[second].role is Role.PREFILL:  # none that is meant for decodes is available
            return Placement(first, False)
        if _whole(len(prompt_ids), replicas[second], replicas[first]) <= self._split(replicas[first]):
            return Placement(second, False)
        return Placement(first, True)

    def _split(self, prefill: ReplicaView) -> float:
        return prefill.first_token_seconds + self._hand_over_seconds


def _whole(tokens: int, decode: ReplicaView, prefill: ReplicaView) -> float:
    """Until the first token if a decode replica does it all, and for how long the prompt holds up what decodes there meanwhile (at
    least one: what would have come).

    A decode replica that has computed few prompts does not know what they cost: then they cost what they do in the other.
    """
    own = decode.first_token_seconds - decode.waiting_seconds
    if not decode.measured:
        each = (prefill.first_token_seconds - prefill.waiting_seconds) / max(1, tokens - prefill.cached_tokens)
        own = each * (tokens - decode.cached_tokens - decode.tier_tokens)
    return decode.waiting_seconds + own * (1 + max(1, decode.running))
