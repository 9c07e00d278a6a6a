"""What a drafter needs of a draft model. No torch."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from engine.sequence import Sequence as TokenSequence
from engine.sequence_input import SequenceInput


class Guess(NamedTuple):
    """A token that a draft model would go on with, None if it has none; `chance`: how likely it is, says the draft."""

    token: int | None
    chance: float


class DraftModel(Protocol):
    """A small model with a KV pool of its own. Used by the worker's thread alone.

    Attributes:
        name: the model's.
        blocks: of its pool.
        block_size: tokens of a block.
        context: longest sequence that it computes.
        vocab_size: ids from this on are no tokens to it.
    """

    name: str
    blocks: int
    block_size: int
    context: int
    vocab_size: int

    def compute(self, inputs: Sequence[SequenceInput], sequences: Sequence[TokenSequence]) -> list[Guess]:
        """Compute the chunks of some sequences, whose KV of earlier positions is there, and guess after the last rows of those that
        want one result, by the draw that their requests have at that position.

        Args:
            inputs: the chunks; `wanted` is 1 or 0.
            sequences: those of the chunks that want a result, in their order.
        """
        ...

    def forget(self, request_id: str) -> None:
        """The request has ended, or some of its tokens have been taken back."""
        ...
