"""What a routing policy sees: each replica as it is now, with what is expected of it for the request at hand."""

from dataclasses import dataclass
from enum import StrEnum

from scheduler.types.step import ChunkPhase


class Role(StrEnum):
    """Which phase of requests a replica is meant for. Every replica can do both: a role is a preference."""

    MIXED = "mixed"
    PREFILL = "prefill"
    DECODE = "decode"

    def takes(self, phase: ChunkPhase) -> bool:
        """Whether a request in this phase should be sent there."""
        return self is Role.MIXED or self.value == phase.value


@dataclass(slots=True, kw_only=True)  # not frozen: a router is shown one for each replica and request
class ReplicaView:
    """One replica, for one request. Times are expectations, in seconds.

    Attributes:
        role: the phase that it is meant for.
        available: whether it takes requests at all.
        full: whether the request would wait there until another one ends: no sequence or too few KV blocks are free.
        open: sequences that have not ended.
        running: of these, those that have been admitted.
        waiting_tokens: prompt tokens of open sequences that are still to be computed.
        waiting_seconds: until these are computed, beside the sequences that decode.
        token_seconds: what a prompt token costs.
        measured: whether enough prompts were computed there to rely on that; if not, times are guesses.
        first_token_seconds: until the first token of this request.
        prompt_seconds: of these, by how much what is to be computed of its prompt makes steps longer that run anyhow.
        decode_seconds: between two tokens of each sequence there, with this request among them.
        step_seconds: of a step of its decodes alone, with this request among them.
        mixed_step_seconds: of a step of these decodes beside as much of what is to be computed of this prompt as a step takes.
        answer_tokens: of a usual answer there.
        blocks_used: KV blocks that open sequences hold.
        blocks_total: KV blocks of the device.
        cached_tokens: leading tokens of this prompt whose KV is on the device, or is being computed there.
        tier_tokens: those behind them whose KV is in a tier below.
        computed_tokens: prompt tokens that were sent there to be computed, ever.
    """

    role: Role = Role.MIXED
    available: bool = True
    full: bool = False
    open: int = 0
    running: int = 0
    waiting_tokens: int = 0
    waiting_seconds: float = 0.0
    token_seconds: float = 0.0
    measured: bool = True
    first_token_seconds: float = 0.0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    step_seconds: float = 0.0
    mixed_step_seconds: float = 0.0
    answer_tokens: float = 0.0
    blocks_used: int = 0
    blocks_total: int = 0
    cached_tokens: int = 0
    tier_tokens: int = 0
    computed_tokens: int = 0
