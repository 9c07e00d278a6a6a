"""The score of a pair of texts, by a model's own head."""

from typing import Protocol

from torch import Tensor

from engine.pooling.pooler import Pooler
from engine.sequence import Sequence
from scheduler.types.output_kind import OutputKind
from scheduler.types.step import Chunk


class ScoreHead(Protocol):
    """What follows a model's last layer."""

    def score(self, first: Tensor) -> Tensor:
        """From the first token's state, [hidden], to the scores, [n]."""
        ...


class PairScore(Pooler):
    """Makes scores of prompts that are computed in one chunk."""

    kind = OutputKind.SCORES

    def __init__(self, head: ScoreHead) -> None:
        self._head = head

    def rows(self, chunk: Chunk, sequence: Sequence) -> int:
        """All, of which the first counts."""
        del sequence
        return chunk.length

    def pool(self, hidden: Tensor, chunk: Chunk, sequence: Sequence) -> Tensor | None:
        """The head's."""
        del chunk, sequence
        return self._head.score(hidden[0])
