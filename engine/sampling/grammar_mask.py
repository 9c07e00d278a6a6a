"""The request's grammar: only tokens with which the output can still become a text of it may follow."""

from collections.abc import Sequence as Listed

from engine.grammar.matchers import Grammars
from engine.sampling.edits import MaskArray, Masker, MaskingEdit
from engine.sequence import Sequence
from scheduler.types.sampling_params import SamplingParams


class GrammarMask(MaskingEdit):
    """Masks every token that leads out of the grammar; the model's end tokens too, until the text is complete."""

    def __init__(self, grammars: Grammars, masker: Masker | None = None) -> None:
        super().__init__(masker)
        self._grammars = grammars

    def concerns(self, sampling: SamplingParams) -> bool:
        """Whether the request has a grammar."""
        return bool(sampling.grammar)

    def masks(self, sequences: Listed[Sequence]) -> MaskArray:
        """What the grammars allow."""
        return self._grammars.masks(sequences)

    def complete(self, sequence: Sequence) -> bool:
        """Whether the grammar has ended."""
        return self._grammars.complete(sequence)

    def only(self, sequence: Sequence) -> int | None:
        """The next token of a text that the grammar leaves no choice about."""
        return self._grammars.only(sequence)

    def forget(self, request_id: str) -> None:
        """Drop the request's place in its grammar."""
        self._grammars.forget(request_id)
