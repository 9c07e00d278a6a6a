"""What the scheduler must know about the model and the operator's wishes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.types.output_kind import OutputKind

IDLE_PART = (
    16  # of a step's tokens, one in so many is for idle requests: who arrives waits for the step that is under way
)


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
    scheduling: str = "priority"  # one of `scheduler.policies.factory.POLICIES`
    tenant_weights: Mapping[str, float] = field(default_factory=dict)  # for `fair`; 1 where absent
    decode_price: float | None = None  # of a generated token in prompt tokens, for `fair`; measured if None
    # LoRA adapters of the worker: by name, a digest of contents.
    adapters: Mapping[str, str] = field(default_factory=dict)
    produces: frozenset[OutputKind] = frozenset({OutputKind.TOKENS})  # kinds of output that the worker makes
    whole_prompts: bool = False  # a prompt is computed in one step or not at all; none is longer than a step
    priority_aging: float = 0.0  # seconds of waiting after which a request goes with the most urgent; 0: never
    idle_step_tokens: int | None = None  # of a step that idle requests have at most; None: one in `IDLE_PART`
    prefix_lookahead: int = 32  # waiting requests among which a resident prefix goes first; not used by `fcfs`

    @property
    def idle_tokens(self) -> int:
        """Tokens of a step that idle requests have at most, and how many of them may run; a whole prompt has to fit."""
        asked = self.max_step_tokens // IDLE_PART if self.idle_step_tokens is None else self.idle_step_tokens
        return max(self.context if self.whole_prompts else 1, min(asked, self.max_step_tokens))

    def __post_init__(self) -> None:
        """An adapter is told from the model as it is by its digest alone.

        Raises:
            ValueError: an adapter has no digest, or a step cannot hold the longest prompt that it has to hold whole.
        """
        if self.whole_prompts and self.max_step_tokens < self.context:
            raise ValueError(f"a step of {self.max_step_tokens} tokens cannot hold whole prompts of {self.context}")
        for name, digest in self.adapters.items():
            if not digest:
                raise ValueError(f"adapter {name!r} has an empty digest: its KV would be taken for the model's own")
