"""What the scheduler must know of the model and the operator's wishes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Fixed for the life of a scheduler."""

    context: int  # longest prompt plus output, in tokens; fits the pool
    eos_token_ids: frozenset[int]
    fingerprint: str  # model and KV format: part of every content address
    max_step_tokens: int = 512
    max_running: int = 64
    max_preemptions: int = 3
    decode_watermark: float = 0.02  # share of the pool that admission leaves for the growth of running requests
