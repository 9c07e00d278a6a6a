"""The edits that a server applies, for samplers on every kind of device."""

from collections.abc import Collection

from engine.grammar.matchers import Grammars
from engine.sampling.allowed_tokens import AllowedTokens
from engine.sampling.bad_words import BadWords
from engine.sampling.bias import LogitBias
from engine.sampling.edits import Edit, Masker
from engine.sampling.grammar_mask import GrammarMask
from engine.sampling.min_tokens import MinTokens
from engine.sampling.penalties import Penalties
from engine.sampling.thinking import ThinkingBudget


def standard_edits(
    vocab_size: int, eos_token_ids: Collection[int], grammars: Grammars | None = None, masker: Masker | None = None
) -> list[Edit]:
    """A new set of all edits, for one model.

    Args:
        vocab_size: of the model.
        eos_token_ids: the tokens that end an answer.
        grammars: those of the worker's sequences, if somebody else looks at them, too.
        masker: as of `MaskingEdit`.
    """
    return [
        AllowedTokens(vocab_size),
        LogitBias(vocab_size),
        BadWords(vocab_size),
        MinTokens(vocab_size, eos_token_ids),
        ThinkingBudget(vocab_size),
        GrammarMask(grammars or Grammars(vocab_size, eos_token_ids), masker),
        Penalties(),
    ]
