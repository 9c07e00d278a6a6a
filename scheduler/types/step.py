"""What crosses between scheduler and worker: a `Step` (what runs next) and a `StepResult` (what came out).

What belongs here: plain data that any worker needs, in this process or another. Never: policy, text, torch.
"""

from dataclasses import dataclass, field

from scheduler.types.sampling_params import SamplingParams
from scheduler.types.transfers import Transfer


@dataclass(slots=True, kw_only=True)
class SequenceInit:
    """A sequence the worker has not seen yet. It keeps its own copy of the tokens and appends what it samples."""

    request_id: str
    prompt_ids: list[int]
    sampling: SamplingParams


@dataclass(slots=True, kw_only=True)
class Chunk:
    """One request's share of a step: compute tokens `[start, start + length)` of the sequence.

    The worker takes the ids from its own copy of the sequence, because the newest id may still be in flight when
    the step is planned. `block_table[i]` holds tokens `[i * block_size, (i + 1) * block_size)`; KV of
    `[0, start)` is resident there, KV of the chunk is written there before any attention of the same layer.
    A sequence has at most one chunk in a step.
    """

    request_id: str
    start: int
    length: int
    block_table: list[int]
    samples: bool  # the chunk reaches the newest token: sample the one after it


@dataclass(slots=True, kw_only=True)
class Step:
    """What runs next. Steps run in the order of their ids, one after the other."""

    step_id: int
    chunks: list[Chunk]
    new: list[SequenceInit] = field(default_factory=list)  # announced before first use
    retired: list[str] = field(default_factory=list)  # the worker may forget these, after this step's `new`
    transfers: list[Transfer] = field(default_factory=list)  # start with this step, end whenever they do

    @property
    def tokens(self) -> int:
        """Tokens computed by this step."""
        return sum(chunk.length for chunk in self.chunks)


@dataclass(slots=True, kw_only=True)
class TokenLogprobs:
    """Natural-log probabilities under the model's raw logits, before penalties and temperature."""

    token_id: int
    logprob: float
    rank: int  # 1 = the likeliest
    top: list[tuple[int, float]]  # the likeliest ids with their logprobs, best first


@dataclass(slots=True, kw_only=True)
class ChunkResult:
    """What one chunk brought. `token_id` is None where the chunk did not sample or the row failed."""

    request_id: str
    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # for positions start+1 .. within the prompt
    error: str | None = None  # this request alone failed


@dataclass(slots=True, kw_only=True)
class StepResult:
    """One `ChunkResult` for each chunk of the step, in the same order."""

    step_id: int
    results: list[ChunkResult]
    seconds: float = 0.0  # the worker's own wall time
