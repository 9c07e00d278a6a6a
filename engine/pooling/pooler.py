"""What a pooler is: it makes the result of requests that produce another kind of output than tokens, on any device.

A pooler is a small object for one `OutputKind` (its file is beside this one, its line in `engine.pooling.registry`). Workers give
it the hidden states that it asks for, chunk by chunk.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from engine.sequence import Sequence as TokenSequence
from scheduler.types.output_kind import OutputKind, Pooled
from scheduler.types.step import Chunk, ChunkResult

NOT_FINITE = "what the model gives for this request is not finite (NaN or infinity)"


class Pooler(ABC):
    """Makes one kind of output of a prompt's hidden states.

    Attributes:
        kind: what it makes.
    """

    kind: OutputKind

    @abstractmethod
    def rows(self, chunk: Chunk, sequence: TokenSequence) -> int:
        """How many of the chunk's last rows it needs, from 0 to `chunk.length`. The chunk that ends the prompt is the one with
        `chunk.start + chunk.length == sequence.prompt_length`."""

    @abstractmethod
    def pool(self, hidden: Tensor, chunk: Chunk, sequence: TokenSequence) -> Tensor | None:
        """Take the rows of a chunk. The chunks of a prompt come in their order, from its first token; after a preemption they come
        again, from the first.

        Args:
            hidden: the last layer's output after the final norm, [rows, hidden] in the model's type and on its device. It changes
                after the call, so what is kept has to be a copy.
            chunk: of the step.
            sequence: whose chunk it is.

        Returns:
            With the chunk that ends the prompt the numbers of the result, [n] in any floating type, on the same device; before,
            None.
        """

    def forget(self, request_id: str) -> None:  # noqa: B027 - most keep nothing
        """Drop what is kept for the request, if anything."""


Poolers = Mapping[OutputKind, Pooler]


def by_kind(poolers: Iterable[Pooler]) -> Poolers:
    """The pooler of each kind.

    Raises:
        ValueError: one is for tokens, which are sampled, or two are for one kind.
    """
    found: dict[OutputKind, Pooler] = {}
    for pooler in poolers:
        if pooler.kind is OutputKind.TOKENS or pooler.kind in found:
            raise ValueError(f"{type(pooler).__name__} cannot make {pooler.kind}: something else does already")
        found[pooler.kind] = pooler
    return found


def produced(poolers: Iterable[Pooler]) -> frozenset[OutputKind]:
    """The kinds of output of a worker that has these poolers."""
    return frozenset({OutputKind.TOKENS, *by_kind(poolers)})


def pool_rows(
    hidden: Tensor,
    chunks: Sequence[Chunk],
    sequences: Sequence[TokenSequence],
    wanted: Sequence[int],
    poolers: Poolers,
) -> Iterator[tuple[int, Tensor]]:
    """Give each pooler its rows of a step.

    Args:
        hidden: the wanted rows of each chunk, laid end to end, [rows, hidden].
        chunks: of the step.
        sequences: one for each chunk.
        wanted: how many rows each chunk has.
        poolers: of the worker.

    Yields:
        Place of a chunk that ends a prompt, and the numbers of its result, fp32 [n].
    """
    begin = 0
    for place, (chunk, sequence, rows) in enumerate(zip(chunks, sequences, wanted, strict=True)):
        if sequence.produces is not OutputKind.TOKENS:
            values = poolers[sequence.produces].pool(hidden[begin : begin + rows], chunk, sequence)
            if values is not None:
                yield place, values.float()
        begin += rows


def deliver(values: list[float], kind: OutputKind, result: ChunkResult) -> None:
    """Put numbers into a result, or an error if they are none."""
    if all(map(math.isfinite, values)):
        result.pooled = Pooled(kind=kind, values=values)
    else:
        result.error = NOT_FINITE
