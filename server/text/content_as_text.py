"""Encodes a prompt so that only what the chat template wrote can become a marker: a token that the model takes as structure.

Each marker gets a secret name in a tokenizer of its own, and where the template wrote one, the name is put in its place. So a
prompt is encoded in one go, with all that a tokenizer does at the borders of a marker, and no spelling that a client knows
is one. A client's `<|im_end|>` is encoded like any other text.
"""

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping

from server.text.tokenizer import Tokenizer
from server.text.traced_text import marks_of

_OWN = re.compile(b"\1+")


def markers_of(tokenizer: Tokenizer, template_source: str) -> dict[int, str]:
    """The tokens, by id, that a client could forge a message with.

    All special tokens, and such added ones as vocabularies in public use forgot to mark as special: those that the template
    itself names, and those spelled `<|..|>`. Runs of spaces and words that are mere vocabulary stay what they are.
    """
    return {
        token_id: text
        for token_id, text in tokenizer.added_tokens.items()
        if token_id in tokenizer.special_ids or _is_bracketed(text) or (text in template_source and _has_sign(text))
    }


def _is_bracketed(text: str) -> bool:
    return any(text.startswith("<" + bar) and text.endswith(bar + ">") for bar in ("|", "\uff5c"))


def _has_sign(text: str) -> bool:
    return any(not char.isalnum() and not char.isspace() for char in text)


class ContentAsText:
    """Encodes the `TracedText` of prompts. Immutable once made; `encode` may be called from any thread.

    Args:
        tokenizer: the model's. A second one is made of it, which takes up to some seconds and as much memory again.
        template_source: the chat template's.
    """

    def __init__(self, tokenizer: Tokenizer, template_source: str) -> None:
        secret = secrets.token_hex(16)
        names = {text: f"{secret}{token_id:08x}" for token_id, text in markers_of(tokenizer, template_source).items()}
        self._tokenizer = tokenizer.renamed(names)
        self._names = names
        self._lengths = _lengths_by_first_character(names)

    def encode(self, text: str, add_special_tokens: bool = True, *, salt: str | None = None) -> list[int]:
        """The token ids of a prompt; as `Tokenizer.encode`, apart from what the client wrote."""
        return self._tokenizer.encode("".join(self._with_names(text)), add_special_tokens, salt=salt)

    def _with_names(self, text: str) -> Iterator[str]:
        """The text in pieces, with names in place of the template's markers: at each place the longest."""
        plain = str.__str__(text)
        done = 0
        for span in _OWN.finditer(marks_of(text)):
            at = span.start()
            while at < span.end():
                marker = self._marker_at(plain, at, span.end())
                if marker is not None:
                    yield plain[done:at]
                    yield self._names[marker]
                    done = at + len(marker)
                at = max(at + 1, done)
        yield plain[done:]

    def _marker_at(self, text: str, begin: int, end: int) -> str | None:
        for length in self._lengths.get(text[begin], ()):
            if begin + length <= end and text[begin : begin + length] in self._names:
                return text[begin : begin + length]
        return None


def _lengths_by_first_character(texts: Iterable[str]) -> Mapping[str, list[int]]:
    """For each character that one of the texts begins with: how long such texts are, the longest first."""
    found: dict[str, set[int]] = {}
    for text in filter(None, texts):
        found.setdefault(text[0], set()).add(len(text))
    return {first: sorted(lengths, reverse=True) for first, lengths in found.items()}
