"""Filling in the middle: what stands before and after a gap, as a prompt in the tokens with which a model was trained to fill it.

A prompt is PREFIX before SUFFIX after MIDDLE, and what follows is the middle (Bavarian et al. 2022, "Efficient Training of Language
Models to Fill in the Middle", section 3: PSM). Models differ in how they spell the three, and in what ends the middle.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from server.text.tokenizer import Tokenizer

# Roles that `tokenizer_config.json` and GGUF files give to tokens, of which any may be missing.
_ROLES = (("fim_pre_token", "fim_suf_token", "fim_mid_token"), ("prefix_token", "suffix_token", "middle_token"))
_END_ROLES = ("eot_token", "fim_pad_token", "fim_rep_token", "fim_sep_token")

# Published spellings of the three, and of what ends a middle beside the model's own end. The tokens of a family stand together.
_SPELLINGS: Mapping[tuple[str, str, str], tuple[str, ...]] = {
    # Qwen2.5-Coder, CodeGemma
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"): (
        *("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>"),
    ),
    # StarCoder, StarCoder2, Granite Code
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"): ("<|endoftext|>", "<fim_pad>", "<repo_name>", "<file_sep>"),
    # SantaCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"): ("<|endoftext|>", "<fim-pad>"),
    # Code Llama
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"): ("\u2581<EOT>",),
    # DeepSeek-Coder: begin, hole, end
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"): (
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    ),
}
_MARK = "\u263a"  # no vocabulary joins it with what follows


@dataclass(frozen=True, slots=True)
class FillTokens:
    """Ids of the three tokens, and of those that end a middle."""

    prefix: int
    suffix: int
    middle: int
    ends: tuple[int, ...]


@lru_cache(maxsize=4)
def fill_tokens(tokenizer: Tokenizer) -> FillTokens | None:
    """The model's, as its files name them or else as its family spells them; None if it has none."""
    roles = tokenizer.special_tokens
    named = [(roles.get(prefix, ""), roles.get(suffix, ""), roles.get(middle, "")) for prefix, suffix, middle in _ROLES]
    for spelling in (*named, *_SPELLINGS):
        found = [token for token in map(tokenizer.id_of, spelling) if token is not None]
        if len(found) == len(spelling):
            prefix, suffix, middle = found
            others = (*_SPELLINGS.get(spelling, ()), *(roles.get(role, "") for role in _END_ROLES))
            ends = [token for token in map(tokenizer.id_of, others) if token is not None]
            return FillTokens(prefix, suffix, middle, tuple(dict.fromkeys([*ends, *found])))
    return None


def fill_prompt(
    before: list[int], after: str, tokens: FillTokens, tokenizer: Tokenizer, *, add_special_tokens: bool
) -> list[int]:
    """The ids that ask for what stands between `before` and `after`.

    Args:
        before: the ids before the gap, without those that begin a text.
        after: the text behind it.
        tokens: the model's.
        tokenizer: the model's.
        add_special_tokens: begin as the tokenizer begins a text.
    """
    begin = tokenizer.encode("") if add_special_tokens else []
    bos = tokenizer.id_of(tokenizer.special_tokens.get("bos_token", ""))
    head = begin[:1] if begin[:1] == [bos] else []
    return [*head, tokens.prefix, *before, tokens.suffix, *_continuing(after, tokenizer), tokens.middle]


def _continuing(text: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of a text that continues another: without the space that SentencePiece puts before a first word."""
    if not tokenizer.strips_first_space:
        return tokenizer.encode(text, add_special_tokens=False)
    mark, marked = (tokenizer.encode(each, add_special_tokens=False) for each in (_MARK, _MARK + text))
    return marked[len(mark) :]
