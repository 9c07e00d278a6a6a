"""Each kind of byte-level GGUF vocabulary gives the ids of the model family's own tokenizer in transformers."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from server.text.gguf_tokenizer import _SPLITS, from_gguf_metadata
from server.text.tokenizer import TokenizerError
from tests.drawn import drawn

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
texts = st.text(
    alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" aeiou'stRE0129\n\t.,你好é\u0301"))
)


def trained(prompts, split, *specials):
    """Metadata of a small byte-level vocabulary, trained on the prompts with this family's split."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = split.make()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, special_tokens=list(specials), show_progress=False
    )
    backend.train_from_iterator(prompts, trainer)
    model = json.loads(backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.token_type": [CONTROL if token in specials else NORMAL for token in tokens],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def vocabulary(metadata):
    vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    return vocab, [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]


@pytest.fixture(scope="module", params=list(_SPLITS))
def family(request, prompts):
    metadata = trained(prompts, _SPLITS[request.param], "<s>", "</s>")
    return request.param, metadata | {"tokenizer.ggml.pre": request.param}


def test_every_family_round_trips_the_prompts(family, prompts):
    tokenizer = from_gguf_metadata(family[1])
    for text in prompts:
        ids = tokenizer.encode(f"<s>{text}</s>", add_special_tokens=False)
        assert (ids[0], ids[-1]) == (0, 1)
        assert tokenizer.decode(ids) == text
        assert len(ids) < len(text.encode())


@pytest.fixture(scope="module")
def qwen(prompts):
    from transformers import Qwen2Tokenizer

    metadata = trained(prompts, _SPLITS["qwen2"], "<|endoftext|>", "<|im_end|>") | {"tokenizer.ggml.pre": "qwen2"}
    vocab, merges = vocabulary(metadata)
    return from_gguf_metadata(metadata), Qwen2Tokenizer(vocab=vocab, merges=merges)


@given(text=texts)
@settings(max_examples=drawn(200))
def test_qwen2_as_transformers(qwen, text):
    ours, theirs = qwen
    assert ours.encode(text) == theirs.encode(text)


def test_qwen2_prompts_as_transformers(qwen, prompts):
    ours, theirs = qwen
    assert [ours.encode(text) for text in prompts] == [theirs.encode(text) for text in prompts]


@pytest.fixture(scope="module")
def gpt2(prompts):
    from transformers import GPT2Tokenizer

    metadata = trained(prompts, _SPLITS["gpt-2"], "<|endoftext|>", "<x>") | {"tokenizer.ggml.pre": "gpt-2"}
    vocab, merges = vocabulary(metadata)
    return from_gguf_metadata(metadata), GPT2Tokenizer(vocab=vocab, merges=merges)


@given(text=texts)
@settings(max_examples=drawn(200))
def test_gpt2_as_transformers(gpt2, text):
    ours, theirs = gpt2
    assert ours.encode(text) == theirs.encode(text)


# What the families' published regexes do, case by case.
PIECES = {
    "gpt-2": ("I'LL pay  $1234.5!\n\nOK", ["I", "'", "LL", " pay", " ", " $", "1234", ".", "5", "!", "\n", "\n", "OK"]),
    "smollm": ("x  12 345", ["x", "  ", "1", "2", " ", "3", "4", "5"]),
    "llama-bpe": ("I'LL pay  $12345!\n\n(OK)", ["I", "'LL", " pay", " ", " $", "123", "45", "!\n\n", "(OK", ")"]),
    "qwen2": ("I'LL 123!\n\n(OK)", ["I", "'LL", " ", "1", "2", "3", "!\n\n", "(OK", ")"]),
    "tekken": ("HelloWORLDs 12/\n", ["Hello", "WORLDs", " ", "1", "2", "/\n"]),
    "deepseek-v3": ("你好abc 12345 .Net", ["你好", "abc", " ", "123", "45", " .", "Net"]),
    "deepseek-coder": ("foo 12\n\nbar", [" foo"[1:], " ", "1", "2", "\n", "\n", "bar"]),
}


@pytest.mark.parametrize("name", PIECES)
def test_words_are_cut_as_published(name):
    text, expected = PIECES[name]
    spell = decoders.ByteLevel()
    assert [spell.decode([piece]) for piece, _ in _SPLITS[name].make().pre_tokenize_str(text)] == expected


def test_llama3_takes_whole_entries_and_adds_bos(prompts):
    metadata = trained(prompts, _SPLITS["llama-bpe"], "<s>", "</s>") | {"tokenizer.ggml.pre": "llama-bpe"}
    metadata["tokenizer.ggml.tokens"].append("zqzq")  # no merge leads here
    metadata["tokenizer.ggml.token_type"].append(NORMAL)
    last = len(metadata["tokenizer.ggml.tokens"]) - 1
    assert from_gguf_metadata(metadata).encode("zqzq") == [0, last]
    assert from_gguf_metadata(metadata | {"tokenizer.ggml.add_bos_token": False}).encode("zqzq") == [last]
    assert from_gguf_metadata(metadata | {"tokenizer.ggml.add_eos_token": True}).encode("zqzq") == [0, last, 1]
    assert last not in from_gguf_metadata(metadata | {"tokenizer.ggml.pre": "qwen2"}).encode("zqzq")


def test_user_defined_tokens_are_whole_but_not_special(prompts):
    metadata = trained(prompts, _SPLITS["gpt-2"], "<s>", "</s>") | {"tokenizer.ggml.pre": "gpt-2"}
    metadata["tokenizer.ggml.tokens"] += ["<think>", "   é"]
    metadata["tokenizer.ggml.token_type"] += [USER_DEFINED, USER_DEFINED]
    tokenizer = from_gguf_metadata(metadata)
    ids = tokenizer.encode("a<think>   é")
    last = len(metadata["tokenizer.ggml.tokens"]) - 1
    assert ids[-2:] == [last - 1, last] and last not in tokenizer.special_ids
    assert tokenizer.decode(ids) == "a<think>   é"


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "'bert' .* known are gpt2, llama"),
        ({"tokenizer.ggml.model": None}, "known are gpt2, llama"),
        ({"tokenizer.ggml.pre": "martian"}, "unknown pre-tokenizer 'martian'; known are default, gpt-2, smollm"),
        ({"tokenizer.ggml.pre": None}, "names no pre-tokenizer; known are"),
        ({"tokenizer.ggml.tokens": None}, "no tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.merges": None}, "no tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["not there"]}, "vocabulary is broken"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "49152 tokens but 2 token types"),
    ],
)
def test_what_is_missing_or_unknown_is_named(metadata, change, message):
    with pytest.raises(TokenizerError, match=message):
        from_gguf_metadata(metadata | change)


def test_the_embedded_tokenizer_has_the_nul(smollm):
    ids = smollm.encode("a\0b\0\0")
    assert b"".join(map(smollm.token_bytes, ids)) == b"a\0b\0\0" and smollm.decode(ids, continues=True) == "a\0b\0\0"
