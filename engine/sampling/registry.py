"""The edits that a server applies, for samplers on every kind of device."""

from collections.abc import Collection

from engine.sampling.bad_words import BadWords
from engine.sampling.bias import LogitBias
from engine.sampling.edits import Edit
from engine.sampling.min_tokens import MinTokens
from engine.sampling.penalties import Penalties


def standard_edits(vocab_size: int, eos_token_ids: Collection[int]) -> list[Edit]:
    """A new set of all edits, for one model."""
    return [LogitBias(vocab_size), BadWords(vocab_size), MinTokens(vocab_size, eos_token_ids), Penalties()]
