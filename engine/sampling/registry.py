"""The edits that a server applies, for samplers on every kind of device."""

from collections.abc import Collection

from engine.grammar.matchers import Grammars
from engine.sampling.allowed_tokens import AllowedTokens
from engine.sampling.bad_words import BadWords
from engine.sampling.bias import LogitBias
from engine.sampling.edits import Edit
from engine.sampling.grammar_mask import GrammarMask
from engine.sampling.min_tokens import MinTokens
from engine.sampling.penalties import Penalties
from engine.sampling.thinking import ThinkingBudget


def standard_edits(vocab_size: int, eos_token_ids: Collection[int], grammars: Grammars | None = None) -> list[Edit]:
    """A new set of all edits, for one model. `grammars`: those of the worker's sequences, if somebody else looks at them, too."""
    return [
        AllowedTokens(vocab_size),
        LogitBias(vocab_size),
        BadWords(vocab_size),
        MinTokens(vocab_size, eos_token_ids),
        ThinkingBudget(vocab_size),
        GrammarMask(grammars or Grammars(vocab_size, eos_token_ids)),
        Penalties(),
    ]
