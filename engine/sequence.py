"""The worker's own copy of a sequence: its tokens, and what its request asks of the sampler."""

from dataclasses import dataclass
from typing import Self

from scheduler.types.output_kind import OutputKind
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import SequenceInit


@dataclass(slots=True, kw_only=True)
class Sequence:
    """Owned by the worker, which appends each token it samples; everyone else only reads.

    Attributes:
        request_id: of its request.
        tokens: the prompt followed by the sampled tokens, only ever appended to. Preemption does not touch them: what is
            computed again is KV, never tokens.
        prompt_length: how many of them are the prompt.
        sampling: what the request asks of the sampler.
        announced_length: tokens that came with the announcement: the prompt, and the output so far of a resumed request.
        adapter: name of its LoRA adapter; empty: none.
        produces: what becomes of it.
        pair_start: of two texts in one prompt, the second one's first token; 0: one text.
    """

    request_id: str
    tokens: list[int]
    prompt_length: int
    sampling: SamplingParams
    announced_length: int
    adapter: str = ""
    produces: OutputKind = OutputKind.TOKENS
    pair_start: int = 0

    @classmethod
    def from_init(cls, init: SequenceInit) -> Self:
        """Begin a sequence with a copy of the announced tokens."""
        tokens = init.prompt_ids + init.generated_ids
        return cls(
            request_id=init.request_id,
            tokens=tokens,
            prompt_length=len(init.prompt_ids),
            sampling=init.sampling,
            announced_length=len(tokens),
            adapter=init.adapter,
            produces=init.produces,
            pair_start=init.pair_start,
        )
