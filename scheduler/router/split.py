"""Which jobs are split: their prompt is computed by a prefill replica, and a decode replica goes on after the first token.

It is decided by expected time. If a decode replica does it all, the request waits for what it does there, and each sequence that
decodes there waits for the prompt (DistServe, Zhong et al., OSDI 2024, section 2.3, measures that interference). If the job is
split, the request waits for what the prefill replica does, and for the hand-over. So short prompts and those that are mostly cached
where they are decoded are not split, and neither are any while so much waits for prefill replicas that it would take longer.

Where roles switch, prompts for which prefill replicas are too few should get more of them, and not disturb decodes until nobody can
tell which phase is behind: they go to a decode replica only if tokens there keep coming in time, or if waiting is hopeless.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.router.policy import Router
from scheduler.router.role_switching import PhaseBounds
from scheduler.router.view import ReplicaView, Role
from scheduler.types.step import ChunkPhase

_GUESS = 0.05  # seconds of a hand-over before one was seen
_HOPELESS = 2.0  # times the bound, that a first token may be late, before decodes suffer for it
_MEMORY = 0.9  # weight of those before beside a new one
# What is left of how much slower they were than the guess, after each job that is not split for that alone.
_HOPE = 0.99


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a job goes: the index of a replica, and the one that is expected to go on after the first token; the same one if the
    job is not split."""

    index: int
    decodes: int

    @property
    def hand_over(self) -> bool:
        """Whether another goes on after the first token. Which one is chosen then."""
        return self.decodes != self.index


class Split:
    """The decision for one pool of replicas.

    Args:
        router: chooses among the replicas that take a phase.
        bounds: by which the pool's roles switch; None: they do not.
        guess: seconds of a hand-over before one was seen.

    Attributes:
        hand_over_seconds: that a hand-over takes, from the first token to the next.
    """

    def __init__(self, router: Router, *, bounds: PhaseBounds | None = None, guess: float = _GUESS) -> None:
        self.hand_over_seconds = guess
        self._bounds = bounds
        self._guess = guess
        self._router = router

    def handed_over(self, seconds: float) -> None:
        """A hand-over took so long, from the first token to the next."""
        self.hand_over_seconds = _MEMORY * self.hand_over_seconds + (1 - _MEMORY) * seconds

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
            return Placement(first, first)
        second = self._router.choose(prompt_ids, replicas, ChunkPhase.DECODE)
        if replicas[second].role is Role.PREFILL:  # none that is meant for decodes is available
            return Placement(first, first)
        prefill, decode = replicas[first], replicas[second]
        gained = _whole(len(prompt_ids), decode, prefill) - prefill.first_token_seconds
        if gained <= self.hand_over_seconds and self._may_go_to(decode, prefill):
            self._hope(gained)
            return Placement(second, second)
        return Placement(first, second)

    def _hope(self, gained: float) -> None:
        """A job is not split, which would gain so many seconds less a hand-over: if those that were seen were merely slow at that
        time, nobody would see that they no longer are."""
        if gained > self._guess:
            self.hand_over_seconds = _HOPE * self.hand_over_seconds + (1 - _HOPE) * self._guess

    def _may_go_to(self, decode: ReplicaView, prefill: ReplicaView) -> bool:
        bounds = self._bounds
        if bounds is None or prefill.first_token_seconds > _HOPELESS * bounds.ttft:
            return True
        return decode.mixed_step_seconds <= bounds.tpot


def _whole(tokens: int, decode: ReplicaView, prefill: ReplicaView) -> float:
    """Until the first token if a decode replica does it all, and for how long the prompt holds up what decodes there meanwhile (at
    least one: what would have come).

    A decode replica that has computed few prompts does not know what they cost: then they cost what they do in the other.
    """
    own, holds_up = decode.first_token_seconds - decode.waiting_seconds, decode.prompt_seconds
    if not decode.measured:
        share = _uncached(tokens, decode) / max(1, _uncached(tokens, prefill))
        own = share * (prefill.first_token_seconds - prefill.waiting_seconds)
        holds_up = share * prefill.prompt_seconds
    return decode.waiting_seconds + own + holds_up * max(1, decode.running)


def _uncached(tokens: int, replica: ReplicaView) -> int:
    return tokens - replica.cached_tokens - replica.tier_tokens
