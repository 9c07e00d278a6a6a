"""Chat sessions that grow: with what was encoded before and without, ids are the same, for other templates and tokenizers, too."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from server.text import tokenizer as tokenizers_module
from server.text.chat_template import ChatTemplate, load_chat_template
from server.text.prefixes import known_prefixes
from server.text.prefixes.known_prefixes import KnownPrefixes, cutting_tokens
from tests.drawn import drawn
from tests.server.text.test_chat_template import TEMPLATES

WORDS = [
    "water",
    " ",
    "\n",
    "é",
    "e\u0301",
    "A",
    "你好",
    "🎉",
    "12",
    "<|im_end|>",
    "<|im_",
    "</s>",
    "▁",
    "\u00a0",
    "[X]",
    "_",
    "<s",
]
texts = st.lists(st.sampled_from(WORDS), max_size=12).map("".join)


@pytest.fixture
def short(monkeypatch):
    """Short texts are cut, too, and as often as they can be."""
    monkeypatch.setattr(known_prefixes, "LEAST_CHARACTERS", 1)
    monkeypatch.setattr(known_prefixes, "APART", 1)
    monkeypatch.setattr(tokenizers_module, "LEAST_CHARACTERS", 1)


@pytest.mark.parametrize("name", ["smollm", "brackets", "headers", "thinking"])
@given(turns=st.lists(texts, min_size=1, max_size=5), fork=st.integers(0, 4))
@settings(max_examples=drawn(20), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_session_has_the_ids_of_its_whole_text_after_every_turn(smollm, short, name, turns, fork):
    source = smollm.model_chat_template if name == "smollm" else TEMPLATES[name]
    template = load_chat_template(smollm) if name == "smollm" else ChatTemplate(source, smollm.special_tokens)
    messages = []
    for index, text in enumerate([*turns, *turns[fork:]]):  # the second time it goes on from an earlier turn
        if index == len(turns):
            messages = messages[:fork]
        messages.append({"role": ("user", "assistant")[len(messages) % 2], "content": text})
        for generation in (True, False):
            rendered = template.render(messages, add_generation_prompt=generation)
            plain = smollm.encode(rendered, add_special_tokens=False)
            assert smollm.encode(rendered, add_special_tokens=False, salt="mine") == plain
    assert name in ("headers", "brackets") or smollm._prefixes._places, "something was cut"


def built(pre_tokenizer, *added, normalizer=None):
    """A tokenizer of single characters and some merges."""
    characters = sorted({*"".join(WORDS), *pre_tokenizers.ByteLevel.alphabet(), "▁"})
    merges = [("w", "a"), ("e", "r"), ("▁", "w"), ("Ġ", "w"), ("s", ">")]
    vocabulary = dict.fromkeys(["<unk>", *characters, *map("".join, merges)])
    model = models.BPE({token: index for index, token in enumerate(vocabulary)}, merges, unk_token="<unk>")
    made = Tokenizer(model)
    made.pre_tokenizer, made.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    made.add_special_tokens([token for token in added if token.special])
    made.add_tokens([token for token in added if not token.special])
    return made


def special(text, **flags):
    return AddedToken(text, special=True, normalized=False, **flags)


TOKENIZERS = {
    "bytes": built(pre_tokenizers.ByteLevel(add_prefix_space=False), special("<|im_end|>"), special("</s>")),
    "a space before each text": built(pre_tokenizers.ByteLevel(add_prefix_space=True), special("<|im_end|>")),
    "a space before the first word": built(pre_tokenizers.Metaspace(prepend_scheme="first"), special("</s>")),
    "a space before each word": built(pre_tokenizers.Metaspace(prepend_scheme="always"), special("</s>")),
    "normalized": built(
        pre_tokenizers.ByteLevel(add_prefix_space=False), special("<|im_end|>"), normalizer=normalizers.NFC()
    ),
    "prepended": built(pre_tokenizers.Whitespace(), special("</s>"), normalizer=normalizers.Prepend("▁")),
    "stripped": built(
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        special("<|im_end|>", rstrip=True),
        special("</s>", lstrip=True),
        special("[X]"),
    ),
    "whole words": built(
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        special("water"),
        AddedToken("12", single_word=True, normalized=False),
        special("</s>"),
    ),
    "common ones": built(
        pre_tokenizers.ByteLevel(add_prefix_space=False), special("</s>"), AddedToken("A"), AddedToken("_", lstrip=True)
    ),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(parts=st.lists(texts, min_size=1, max_size=4))
@example(parts=["water", "12 ", "water 12"])
@settings(max_examples=drawn(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_kind_of_tokenizer_is_cut_where_that_shows(short, name, parts):
    made = TOKENIZERS[name]

    def encode(given):
        return [each.ids for each in made.encode_batch_fast(given, add_special_tokens=False)]

    known = KnownPrefixes(encode, cutting_tokens(made.get_added_tokens_decoder(), encode))
    text = ""
    for part in parts:
        text += part
        assert known.encode(text, "") == encode([text])[0]


@pytest.mark.parametrize(
    ("name", "marks"), [("bytes", {"<|im_end|>", "</s>"}), ("stripped", {"[X]"}), ("whole words", {"</s>"})]
)
def test_where_nothing_shows_it_is_cut(name, marks):
    made = TOKENIZERS[name]

    def encode(given):
        return [each.ids for each in made.encode_batch_fast(given, add_special_tokens=False)]

    assert set(cutting_tokens(made.get_added_tokens_decoder(), encode)) == marks
