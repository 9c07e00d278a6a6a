"""What a grammar needs to know of a model's tokens, in a file that the server writes once and engines read when they need it.

An engine has no tokenizer. The first request with a grammar names the file (`SamplingParams.vocabulary`); until then nobody makes
it, reads it, or imports llguidance.
"""

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
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
# Sets of tokens that are allowed or masked as a whole: texts of so many characters, as they stand in a JSON string. Nine in ten
# masks of strings with a `maxLength` take 40 us with these, 150 with llguidance's own (10 and 30). None of spaces: making one
# holds the interpreter.
_SLICES = [rf'[^"\\\x00-\x1F\x7F]{length}' for length in ("{1,8}", "{1,14}", "+")]

# What is joined at once, which takes the square of its length. A space before a word is the word's (Radford et al. 2019, GPT-2).
_WORD = re.compile(r"\s{1,64}(?=\s\S)|\s?\S{1,48}|\s{1,64}")
_WORDS_KEPT = 4096
_NO_TOKEN = 2**31


class TokenSpellings(msgspec.Struct, frozen=True):
    """The model's tokens.

    Attributes:
        tokens: the bytes that each adds to a text, by id; of a special token its spelling.
        special_ids: those that are not text: no text of a grammar is made of them.
        added_ids: further ones that are no product of merges, but found whole in a text, such as a tag of tool calls.
    """

    tokens: list[bytes]
    special_ids: list[int]
    added_ids: list[int] = []

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
        spelling = _Tokens(tokens, special, eos_token_ids[0], [token for token in self.added_ids if token < vocab_size])
        wrapper = llguidance.TokenizerWrapper(spelling)
        return llguidance.LLTokenizer(wrapper, eos_token=list(eos_token_ids), slices=_SLICES)


class _Tokens:
    """What llguidance asks of a tokenizer.

    A text that must follow is spelled as the model has read it: like byte-pair encoding, which joins the pair that was joined
    first in training (Sennrich et al. 2016, "Neural machine translation of rare words with subword units", section 3.2), it joins
    the pair that makes the token of the lowest id, since ids are given in that order. What the model's tokenizer keeps apart makes
    no token, and so is not joined here either. Of 376 names and literals of schemas it spells 373 as Qwen2.5's tokenizer does, and
    376 as SmolLM2's; the longest match 302 and 348. These tokenizers themselves would take each engine 0.4 s with its interpreter
    held, and more memory.
    """

    bos_token_id = None

    def __init__(
        self, tokens: list[bytes], special_ids: list[int], eos_token_id: int, added_ids: Sequence[int] = ()
    ) -> None:
        special = set(special_ids)
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special_ids, eos_token_id
        self._ids = {token: i for i, token in reversed(list(enumerate(tokens))) if token and i not in special}
        added = sorted((tokens[i].decode(errors="replace") for i in added_ids), key=len, reverse=True)
        self._added = re.compile(f"({'|'.join(map(re.escape, added)) or '(?!)'})")
        self._word = lru_cache(_WORDS_KEPT)(self._joined)  # names come again and again

    def __call__(self, text: str) -> list[int]:
        """The ids of a text; bytes without a token are left out."""
        ids: list[int] = []
        for i, part in enumerate(self._added.split(text)):
            if i % 2:
                ids.append(self._ids[part.encode()])
            else:
                ids += [token for word in _WORD.findall(part) for token in self._word(word)]
        return ids

    def _joined(self, word: str) -> list[int]:
        parts: list[bytes] = []
        for char in map(str.encode, word):
            parts += [char] if char in self._ids else [bytes([byte]) for byte in char]
        while True:
            pairs = [(self._ids.get(a + b, _NO_TOKEN), i) for i, (a, b) in enumerate(pairwise(parts))]
            token, i = min(pairs, default=(_NO_TOKEN, 0))
            if token == _NO_TOKEN:
                return [self._ids[part] for part in parts if part in self._ids]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]


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
