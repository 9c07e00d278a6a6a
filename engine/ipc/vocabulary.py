"""What a grammar needs to know of a model's tokens, in a file that the server writes once and engines read when they need it.

An engine has no tokenizer. The first request with a grammar names the file (`SamplingParams.vocabulary`); until then nobody makes
it, reads it, or imports llguidance.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# Work of one mask and size of a grammar, beyond which llguidance gives up. Its own limits allow 15 ms of work for one mask.
_STEP_FUEL = 50_000  # of the lexer, some 14 an us
_STEP_ITEMS = 20_000  # of the parser, some 20 an us
_LEXER_STATES = 50_000  # 1-2 kB each
_GRAMMAR_SIZE = 200_000


class TokenSpellings(msgspec.Struct, frozen=True):
    """The model's tokens.

    Attributes:
        tokens: the bytes that each adds to a text, by id; of a special token its spelling.
        special_ids: those that are not text: no text of a grammar is made of them.
    """

    tokens: list[bytes]
    special_ids: list[int]

    def write(self, path: Path) -> None:
        """Put it into a file, in one step.

        Raises:
            OSError: it cannot be written.
        """
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.msgpack.encode(self))
        os.replace(new, path)

    @classmethod
    def read(cls, path: Path) -> "TokenSpellings":
        """What `write` wrote.

        Raises:
            OSError: it cannot be read.
            msgspec.DecodeError: it is something else.
        """
        return msgspec.msgpack.decode(path.read_bytes(), type=cls)

    def tokenizer(self, vocab_size: int, eos_token_ids: Sequence[int]) -> "LLTokenizer":
        """The tokens as llguidance takes them.

        Args:
            vocab_size: the model's; tokens beyond it are left out, and ids without a token spell nothing.
            eos_token_ids: any of them ends a text. A model without gets an id of its own behind the vocabulary.
        """
        import llguidance

        tokens = [*self.tokens[:vocab_size], *[b""] * (vocab_size - len(self.tokens))]
        special = [token for token in self.special_ids if token < vocab_size]
        if not eos_token_ids:
            eos_token_ids = [vocab_size]
            tokens.append(b"<eos>")
            special.append(vocab_size)
        # All slices but one are for shorter strings; making one holds the interpreter's lock for a tenth of a second.
        wrapper = llguidance.TokenizerWrapper(_Tokens(tokens, special, eos_token_ids[0]))
        return llguidance.LLTokenizer(
            wrapper, eos_token=list(eos_token_ids), slices=llguidance.LLTokenizer.json_slices()[-1:]
        )


class _Tokens:
    """What llguidance asks of a tokenizer. It splits texts greedily, as the model's own tokenizer mostly does."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], special_ids: list[int], eos_token_id: int) -> None:
        special = set(special_ids)
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special_ids, eos_token_id
        self._ids = {token: i for i, token in reversed(list(enumerate(tokens))) if token and i not in special}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: bytes | str) -> list[int]:
        """The ids of a text; bytes without a token are left out."""
        left, ids = text if isinstance(text, bytes) else text.encode(), []
        while left:
            sizes = range(min(len(left), self._longest), 0, -1)
            size = next((size for size in sizes if left[:size] in self._ids), 0)
            if size:
                ids.append(self._ids[left[:size]])
            left = left[size or 1 :]
        return ids


def matcher_of(tokenizer: "LLTokenizer", grammar: str) -> "LLMatcher":
    """A new walk through the grammar; `is_error` says whether it cannot be walked. The interpreter's lock is released meanwhile."""
    import llguidance

    limits = llguidance.LLParserLimits(
        step_lexer_fuel=_STEP_FUEL,
        step_max_items=_STEP_ITEMS,
        max_lexer_states=_LEXER_STATES,
        max_grammar_size=_GRAMMAR_SIZE,
        verbose_errors=False,
    )
    return llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
