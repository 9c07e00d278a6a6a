"""What goes on with a known text has the ids that it has anyhow, whatever was remembered and forgotten before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from server.text.prefixes.known_prefixes import APART, LEAST_CHARACTERS, KnownPrefixes, cutting_tokens
from tests.server.engines.harness import tokenizer

TURNS = ["<|im_start|>user\n", "<|im_end|>\n", "water ", "  \n", "é", "🎉", "123", "<|endoftext|>", "<|im_", "x" * 700]


@pytest.fixture
def backend():
    return tokenizer()._backend


def encoder(backend, encoded):
    """Notes how many characters it encoded."""

    def encode(texts):
        encoded.append(sum(map(len, texts)))
        return [each.ids for each in backend.encode_batch_fast(texts, add_special_tokens=False)]

    return encode


def check_integrity(known):
    assert known.held == sum(session.size for session in known._sessions) <= known._room
    assert {key for session in known._sessions for key in session.keys} == set(known._places)
    assert sum(len(session.keys) for session in known._sessions) == len(known._places)
    for key, (session, count) in known._places.items():
        assert session in known._sessions and key in session.keys and count <= len(session.ids)


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.sampled_from(TURNS), max_size=8)), max_size=12))
def test_ids_are_those_of_the_whole_text(steps):
    backend, encoded = tokenizer()._backend, []
    encode = encoder(backend, encoded)
    marks = cutting_tokens(backend.get_added_tokens_decoder(), encode)
    known = KnownPrefixes(encode, marks, room=6000)  # some sessions
    sessions = ["<|im_start|>system\n" + "long. " * (LEAST_CHARACTERS // 6) + "<|im_end|>\n"] * 4
    for which, turns in steps:
        sessions[which] += "".join(turns)
        assert known.encode(sessions[which], str(which % 2)) == encode([sessions[which]])[0]
        check_integrity(known)


def test_only_what_is_new_is_encoded_and_only_for_the_same_salt(backend):
    encoded = []
    encode = encoder(backend, encoded)
    known = KnownPrefixes(encode, ["<|im_end|>"])
    text = "".join(f"<|im_start|>user\n{'word ' * (APART // 5)}{turn}<|im_end|>\n" for turn in range(20))
    known.encode(text, "mine")
    assert encoded.pop() == len(text)
    known.encode(text + "and", "mine")
    assert encoded.pop() <= APART + len("and")
    known.encode(text, "other")
    assert encoded.pop() == len(text)
    assert len(known._sessions) == 2
    short = KnownPrefixes(encode, ["<|im_end|>"])
    short.encode("a<|im_end|>", "")
    assert not short._sessions


def test_tokens_behind_which_nothing_may_be_cut(backend):
    def cutting(*tokens):
        return cutting_tokens(dict(enumerate(tokens)), lambda texts: [[0] if text else [] for text in texts])

    def none_apart(texts):
        return [[len(text)] for text in texts]

    plain = AddedToken("<a>", special=True, normalized=False)
    assert cutting_tokens({0: plain}, none_apart) == []  # as where a text's own beginning counts
    greedy = AddedToken("<b>", special=True, normalized=False, rstrip=True)
    longer, common = AddedToken("<a>>", special=True, normalized=False), AddedToken("a", normalized=False)
    texts = {"": [], "<a>": [1]}

    def encode(given):
        return [[ord(char) for char in text] if text not in texts else list(map(ord, text)) for text in given]

    assert cutting_tokens({0: plain, 1: greedy}, encode) == ["<a>"]
    assert cutting_tokens({0: plain, 1: longer}, encode) == []
    assert cutting_tokens({0: plain, 1: common}, encode) == []
    assert cutting(plain) == []
