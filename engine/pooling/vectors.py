"""One vector of a text, made of the last layer's states as the model's own files say (`configs.model.pooling`)."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.model.pooling import PoolingKind, PoolingRules
from engine.pooling.pooler import Pooler
from engine.sequence import Sequence
from scheduler.types.output_kind import OutputKind
from scheduler.types.step import Chunk


class VectorPooler(Pooler):
    """Makes vectors, of length 1 if `normalize`."""

    kind = OutputKind.VECTOR

    def __init__(self, normalize: bool) -> None:
        self._normalize = normalize

    def rows(self, chunk: Chunk, sequence: Sequence) -> int:
        """All of them."""
        del sequence
        return chunk.length

    def pool(self, hidden: Tensor, chunk: Chunk, sequence: Sequence) -> Tensor | None:
        """The vector, in fp32 [hidden], with the prompt's last chunk."""
        vector = self.vector(hidden.float(), chunk, sequence)
        return F.normalize(vector, dim=0) if vector is not None and self._normalize else vector

    @abstractmethod
    def vector(self, hidden: Tensor, chunk: Chunk, sequence: Sequence) -> Tensor | None:
        """As `pool`, for fp32 [rows, hidden]; its length does not matter yet."""


class LastToken(VectorPooler):
    """The last token's state: a decoder's only one that has seen the whole text."""

    def rows(self, chunk: Chunk, sequence: Sequence) -> int:
        """The prompt's last one."""
        return int(_ends(chunk, sequence))

    def vector(self, hidden: Tensor, chunk: Chunk, sequence: Sequence) -> Tensor | None:
        """It is the only row."""
        del chunk, sequence
        return hidden[0].clone() if len(hidden) else None


class Gathered(VectorPooler):
    """What is gathered over all tokens, chunk by chunk."""

    def __init__(self, normalize: bool) -> None:
        super().__init__(normalize)
        self._so_far: dict[str, Tensor] = {}

    def vector(self, hidden: Tensor, chunk: Chunk, sequence: Sequence) -> Tensor | None:
        """Gather the chunk."""
        gathered = self.gather(hidden, chunk)
        if chunk.start:
            gathered = self.join(self._so_far.pop(sequence.request_id), gathered)
        if _ends(chunk, sequence):
            return self.finish(gathered, sequence.prompt_length)
        self._so_far[sequence.request_id] = gathered
        return None

    def forget(self, request_id: str) -> None:
        """Drop what was gathered."""
        self._so_far.pop(request_id, None)

    def gather(self, hidden: Tensor, chunk: Chunk) -> Tensor:
        """One fp32 [hidden] of a chunk's rows: their sum."""
        del chunk
        return hidden.sum(0)

    def join(self, before: Tensor, now: Tensor) -> Tensor:
        """That of two chunks together."""
        return before + now

    def finish(self, gathered: Tensor, tokens: int) -> Tensor:
        """The vector of a text of so many tokens: the mean."""
        return gathered / tokens


class FirstToken(Gathered):
    """The first token's state, `[CLS]` in BERT."""

    def gather(self, hidden: Tensor, chunk: Chunk) -> Tensor:
        """The first row; only the first chunk's counts."""
        del chunk
        return hidden[0].clone()

    def join(self, before: Tensor, now: Tensor) -> Tensor:
        """The earlier."""
        del now
        return before

    def finish(self, gathered: Tensor, tokens: int) -> Tensor:
        """As it is."""
        del tokens
        return gathered


class Largest(Gathered):
    """The largest number of each dimension."""

    def gather(self, hidden: Tensor, chunk: Chunk) -> Tensor:
        """Over the rows."""
        del chunk
        return hidden.amax(0)

    def join(self, before: Tensor, now: Tensor) -> Tensor:
        """The larger."""
        return torch.maximum(before, now)

    def finish(self, gathered: Tensor, tokens: int) -> Tensor:
        """As it is."""
        del tokens
        return gathered


class ScaledMean(Gathered):
    """The sum over the square root of the number of tokens."""

    def finish(self, gathered: Tensor, tokens: int) -> Tensor:
        """Scale it."""
        scaled: Tensor = gathered / tokens**0.5
        return scaled


class WeightedMean(Gathered):
    """The mean in which a token counts by its place, from 1 on (Muennighoff 2022, arXiv 2202.08904, section 3.1)."""

    def gather(self, hidden: Tensor, chunk: Chunk) -> Tensor:
        """The weighted sum."""
        places = torch.arange(1, len(hidden) + 1, device=hidden.device, dtype=hidden.dtype) + chunk.start
        return places @ hidden

    def finish(self, gathered: Tensor, tokens: int) -> Tensor:
        """Over the sum of the places."""
        return gathered / (tokens * (tokens + 1) / 2)


POOLERS: dict[PoolingKind, type[VectorPooler]] = {
    "cls": FirstToken,
    "lasttoken": LastToken,
    "max": Largest,
    "mean": Gathered,
    "mean_sqrt_len_tokens": ScaledMean,
    "weightedmean": WeightedMean,
}


def vector_pooler(rules: PoolingRules) -> VectorPooler:
    """A new pooler for a model."""
    return POOLERS[rules.kind](rules.normalize)


def _ends(chunk: Chunk, sequence: Sequence) -> bool:
    return chunk.start + chunk.length == sequence.prompt_length
