"""Filling in the middle: which tokens models have for it, and how a prompt is spelled in them."""

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from server.text.fill_in_middle import fill_prompt, fill_tokens
from server.text.tokenizer import Tokenizer, byte_alphabet, surround

QWEN = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
STARCODER = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
CODE_LLAMA = ["▁<PRE>", "▁<SUF>", "▁<MID>"]
DEEPSEEK = ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"]


def bytes_with(tokens, roles=None, bos=None):
    """A token a byte; 0xF5 and above occur in no text, and stand for these tokens."""
    vocabulary = {char: byte for byte, char in byte_alphabet().items() if byte < 0xF5}
    backend = Backend(models.BPE(vocab=vocabulary | {token: 0xF5 + i for i, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    surround(backend, bos, None)
    return Tokenizer(backend, {"bos_token": bos or "", **(roles or {})})


@pytest.mark.parametrize(
    ("three", "ends"),
    [
        (QWEN, ["<|endoftext|>", "<|fim_pad|>", "<|file_sep|>"]),
        (STARCODER, ["<|endoftext|>", "<file_sep>"]),
        (["<fim-prefix>", "<fim-suffix>", "<fim-middle>"], ["<|endoftext|>"]),
        (CODE_LLAMA, ["▁<EOT>"]),
        (DEEPSEEK, ["<｜end▁of▁sentence｜>"]),
    ],
    ids=["qwen", "starcoder", "santacoder", "code llama", "deepseek"],
)
def test_families_are_known_by_their_spellings(three, ends):
    tokens = fill_tokens(bytes_with([*ends, *three, "<other>"]))
    first = 0xF5 + len(ends)
    assert (tokens.prefix, tokens.suffix, tokens.middle) == (first, first + 1, first + 2)
    assert set(tokens.ends) == set(range(0xF5, first + 3))  # a second prefix is as little a middle as an end is


def test_what_the_files_name_comes_before_what_a_family_is_known_by():
    named = {"fim_pre_token": "<a>", "fim_suf_token": "<b>", "fim_mid_token": "<c>", "fim_pad_token": "<d>"}
    tokens = fill_tokens(bytes_with([*QWEN, "<a>", "<b>", "<c>", "<d>"], named))
    assert (tokens.prefix, tokens.suffix, tokens.middle) == (0xF8, 0xF9, 0xFA)
    assert set(tokens.ends) == {0xF8, 0xF9, 0xFA, 0xFB}
    older = {"prefix_token": "<a>", "suffix_token": "<b>", "middle_token": "<c>", "eot_token": "<d>"}
    assert fill_tokens(bytes_with(["<a>", "<b>", "<c>", "<d>"], older)).ends[0] == 0xF8


@pytest.mark.parametrize("tokens", [[], QWEN[:2], ["<fim_prefix>", "<|fim_suffix|>", "<fim_middle>"]])
def test_two_of_three_or_words_of_several_families_are_none(tokens):
    assert fill_tokens(bytes_with(tokens, {"fim_pre_token": "<|fim_prefix|>"})) is None


def test_a_prompt_is_what_stands_before_then_what_stands_behind():
    tokenizer = bytes_with([*QWEN, "<s>"], bos="<s>")
    tokens = fill_tokens(tokenizer)
    plain = fill_prompt(list(b"ab"), " cd", tokens, tokenizer, add_special_tokens=False)
    assert plain == [0xF5, *b"ab", 0xF6, *b" cd", 0xF7]
    assert fill_prompt(list(b"ab"), " cd", tokens, tokenizer, add_special_tokens=True) == [0xF8, *plain]
    assert fill_prompt([], "cd", tokens, bytes_with(QWEN), add_special_tokens=True) == [0xF5, 0xF6, *b"cd", 0xF7]


def test_of_sentencepiece_vocabularies_the_suffix_gets_no_space_of_its_own():
    pieces = ["<unk>", *CODE_LLAMA, "▁", "a", "b", "▁b", "☺"]
    backend = Backend(
        models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[("▁", "b")], unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CODE_LLAMA])
    tokenizer = Tokenizer(backend, {})
    assert tokenizer.encode("b") == [7]

    def suffix(text):
        return fill_prompt([5], text, fill_tokens(tokenizer), tokenizer, add_special_tokens=True)

    assert suffix("b") == [1, 5, 2, 6, 3]
    assert suffix(" b") == [1, 5, 2, 7, 3]
