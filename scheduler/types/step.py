"""What crosses between scheduler and worker: a `Step` (what runs next) and a `StepResult` (what came out).

What belongs here: plain data that any worker needs, in this process or another. Never: policy, text, torch.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from scheduler.types.output_kind import OutputKind, Pooled
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.transfers import Transfer


class ChunkPhase(StrEnum):
    """What a chunk is for. Its length does not say: a prompt may end with one token, a decode may verify several."""

    PREFILL = "prefill"  # tokens of a prompt, or of a sequence that is computed again after a preemption
    DECODE = "decode"  # the newest token of a sequence, and the drafts after it


@dataclass(slots=True, kw_only=True)
class SequenceInit:
    """A sequence the worker has not seen yet. It keeps its own copy of the tokens and appends what it samples."""

    request_id: str
    prompt_ids: list[int]
    sampling: SamplingParams
    generated_ids: list[int] = field(default_factory=list)  # output that exists already: the request is resumed
    adapter: str = ""  # name of the LoRA adapter; empty: the model as it is
    produces: OutputKind = OutputKind.TOKENS  # another kind: pooled from the prompt, with the result of its last chunk
    pair_start: int = 0  # of two texts in one prompt: the second one's first token; 0: one text


@dataclass(slots=True, kw_only=True)
class Chunk:
    """One request's share of a step: compute tokens `[start, start + length)` of the sequence.

    The worker takes the ids from its own copy of the sequence, because the newest id may still be in flight when
    the step is planned. `block_table[i]` holds tokens `[i * block_size, (i + 1) * block_size)`; KV of
    `[0, start)` is resident there, KV of the chunk is written there before any attention of the same layer.
    A sequence has at most one chunk in a step.

    A token is sampled after each of the chunk's last `samples` positions: none in the middle of a prompt, one at its end
    and in an ordinary decode. Drafts are guesses of the tokens that follow the newest one, which is known when they are
    planned. They are the chunk's last tokens, and `samples` is one more than their number: each guess that equals the
    token sampled in its place is accepted, and the first that does not discards the rest (speculative decoding: Leviathan
    et al. 2023, "Fast inference from transformers via speculative decoding", in the form that compares the draws
    themselves, so that the output is the one without drafts: token for token on the CPU, up to rounding on a GPU).
    """

    request_id: str
    start: int
    length: int
    block_table: list[int]
    phase: ChunkPhase
    samples: int = 0
    draft_ids: list[int] = field(default_factory=list)
    copy_from: int | None = (
        None  # block that is copied to the one with `start`, before anything of the step is computed
    )


@dataclass(slots=True, kw_only=True)
class StepWork:
    """How much a step computes: what its duration depends on."""

    prompt_tokens: int = 0  # of prompts, and of sequences that are computed again
    prompt_keys: int = 0  # keys that these tokens read, each those before it and itself
    decodes: int = 0  # tokens of sequences that decode, drafts included
    decode_keys: int = 0


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

    def work(self) -> StepWork:
        """How much it computes."""
        work = StepWork()
        for chunk in self.chunks:
            length, end = chunk.length, chunk.start + chunk.length
            keys = (end * (end + 1) - chunk.start * (chunk.start + 1)) // 2
            if chunk.phase is ChunkPhase.DECODE:
                work.decodes += length
                work.decode_keys += keys
            else:
                work.prompt_tokens += length
                work.prompt_keys += keys
        return work


@dataclass(slots=True, kw_only=True)
class TokenLogprobs:
    """Natural-log probabilities under the model's raw logits, before penalties and temperature."""

    token_id: int
    logprob: float
    rank: int  # 1 = the likeliest
    top: list[tuple[int, float]]  # the likeliest ids with their logprobs, best first


@dataclass(slots=True, kw_only=True)
class ChunkResult:
    """What one chunk produced: from 1 to `Chunk.samples` tokens if it sampled and did not fail.

    All tokens but the last are accepted drafts; the last was sampled after them. The chunk that ends the prompt of a request
    that produces no tokens brings what is pooled.
    """

    request_id: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # one for each token, if asked for
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # for positions start+1 .. within the prompt
    pooled: Pooled | None = None
    error: str | None = None  # this request alone failed
    complete: bool = False  # with the last of its tokens the output is all that its grammar allows


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphCounts:
    """CUDA graphs of a worker since it started."""

    steps: int = 0  # that ran on one
    recorded: int = 0
    failed: int = 0  # recordings


@dataclass(slots=True, kw_only=True)
class StepResult:
    """One `ChunkResult` for each chunk of the step, in the same order."""

    step_id: int
    results: list[ChunkResult]
    seconds: float = 0.0  # the worker's own wall time
    graphs: GraphCounts | None = None  # of a worker that records any
