"""Routing by expected time, which depends on what is cached where."""

from collections.abc import Sequence

from scheduler.router.policy import able, shortest
from scheduler.router.view import ReplicaView
from scheduler.types.step import ChunkPhase

# What is computed delays not only this request, but all that come after it, and its KV takes the place of others'. So the time that
# the request itself takes counts more than the time that it waits; and so do its decodes, which slow down the others there.
_OWN = 2.0
_DECODES = 2.0


class PrefixAware:
    """For a prompt, where its first token is expected the soonest: what waits there, what of the prompt is cached there and what a
    token costs there are all in that time, and what the prompt itself takes counts several times. So a prefix is followed while
    that is the shorter way, and computed a second time where many ask for it at once. For decodes, where tokens follow each other
    the soonest.

    Where time between tokens would be too long, a request is sent only if it would be everywhere. Of several equal replicas the
    one with the fewest running sequences is chosen; then the one that has most of the prompt, which keeps conversations together;
    then the one that was sent the fewest tokens to compute, so that idle ones share the prefixes.

    Args:
        decode_slo: seconds between the tokens of a sequence that should be kept to; None: no limit.
    """

    def __init__(self, decode_slo: float | None = None) -> None:
        self._decode_slo = decode_slo

    def choose(self, prompt_ids: Sequence[int], replicas: Sequence[ReplicaView], phase: ChunkPhase) -> int:
        """The one that serves the request the soonest."""
        found = able(replicas, phase)
        if self._decode_slo is not None:
            slo = self._decode_slo
            found = [index for index in found if replicas[index].decode_seconds <= slo] or found
        fastest = min(replicas[index].step_seconds for index in found)
        answer = max(replicas[index].answer_tokens for index in found)

        def seconds(index: int) -> float:
            replica = replicas[index]
            if phase is ChunkPhase.DECODE:
                return replica.decode_seconds
            own = replica.first_token_seconds - replica.waiting_seconds
            decodes = answer * (replica.step_seconds - fastest)
            return replica.waiting_seconds + _OWN * own + _DECODES * decodes

        def rank(index: int) -> tuple[int, int, int]:
            replica = replicas[index]
            return replica.running, -replica.cached_tokens - replica.tier_tokens, replica.computed_tokens

        return min(shortest(found, seconds), key=rank)
