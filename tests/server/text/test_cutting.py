"""Texts and pairs cut down to a number of tokens, against transformers' own truncation."""

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from server.text.cutting import cut, special_tokens, whole
from server.text.tokenizer import Tokenizer
from tests.tiny_encoders import VOCABULARY, word_pieces

TEXTS = ["the cat sat", "the dog sat on a mat where the red cat is walking", "a"]


def roberta():
    """`<s> A </s></s> B </s>`, with no types."""
    vocabulary = {"<s>": 0, "</s>": 2, **{letter: 3 + i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyzĠ")}}
    backend = Backend(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return backend


@pytest.mark.parametrize("backend", [word_pieces(), roberta()], ids=["bert", "roberta"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_cut_as_transformers_does(backend, side):
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=backend, truncation_side=side, cls_token="[CLS]", sep_token="[SEP]"
    )
    ours = Tokenizer(backend, {})
    cases = [*TEXTS, *((first, second) for first in TEXTS for second in TEXTS)]
    for given, encoding in zip(cases, ours.inputs(cases), strict=True):
        pair = (given,) if isinstance(given, str) else given
        for most in range(special_tokens(encoding) + 1, len(encoding.ids) + 2):
            want = theirs(*pair, truncation="longest_first", max_length=most, return_token_type_ids=True)
            found = cut(encoding, most, keep_end=side == "left")
            assert found.ids == want["input_ids"], (given, most)
            types = [int(0 < found.pair_start <= place) for place in range(len(found.ids))]
            assert types == want["token_type_ids"], (given, most)


def test_the_types_of_a_pair_and_of_one_text():
    tokenizer = Tokenizer(word_pieces(), {})
    one, two = map(whole, tokenizer.inputs(["the cat", ("the cat", "the dog")]))
    words = [VOCABULARY[token] for token in two.ids]
    assert (words, two.pair_start) == (["[CLS]", "the", "cat", "[SEP]", "the", "dog", "[SEP]"], 4)
    assert (len(one.ids), one.pair_start) == (4, 0)


def test_word_pieces_back_to_text():
    tokenizer = Tokenizer(word_pieces(), {})
    ids = tokenizer.encode("The cats sat on a walking dog.")
    assert tokenizer.decode(ids) == "the cats sat on a walking dog ."
    assert [tokenizer.token_text(token) for token in ids[:4]] == [" [CLS]", " the", " cat", "s"]
