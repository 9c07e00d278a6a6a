"""The stream equals the decoded whole, for any ids, any split into pushes and any stop strings."""

import json
from itertools import cycle, pairwise, product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from server.text.detokenizer import Detokenizer, PlainDetokenizer, _StopString
from server.text.tokenizer import QuotedTexts, Tokenizer
from tests.drawn import drawn

# Ids 0-9 are special or whole, the rest are the bytes of the alphabet: characters are cut at every place.
ids_lists = st.lists(
    st.one_of(
        st.integers(0, 300),
        st.integers(0, 49151),
        st.sampled_from([8, 10, 13, 18, 74, 132, 216, 227, 232, 256, 15107, 10813, 18645, 48392]),
    ),
    max_size=30,
)
text_ids = st.text(alphabet="ab \n🎉é你", max_size=25)


def split(ids, cuts):
    edges = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    return [ids[a:b] for a, b in pairwise(edges)]


def run(detokenizer, pushes):
    return [*(detokenizer.push(ids) for ids in pushes), detokenizer.finish()]


def oracle(tokenizer, ids, stops, min_tokens, include):
    """Decode ever more tokens; the first whose text completes a stop string ends it. Quadratic and simple."""
    whole = tokenizer.decode(ids, continues=True)
    spans = [(whole.find(stop, at) + len(stop), -len(stop), stop) for stop in stops for at in range(len(whole))]
    for end, negative_length, stop in sorted(span for span in spans if span[0] >= len(span[2])):
        token = next(n for n in range(len(ids) + 1) if settled(tokenizer, ids[:n], n == len(ids)) >= end)
        if token >= min_tokens:
            return whole[: end if include else end + negative_length], stop, token
    return whole, None, len(ids)


def settled(tokenizer, ids, final):
    """How many characters are certain after these ids, whatever comes next."""
    text = tokenizer.decode(ids, continues=True)
    if final:
        return len(text)
    # what is certain is a prefix of the text under every continuation: try ones that complete or break a character
    raw = b"".join(tokenizer.token_bytes(i) for i in ids if i not in tokenizer.special_ids)
    if raw[-2:-1] == b"\xed" and 0xA0 <= raw[-1] <= 0xBF:
        # The first two bytes of a surrogate can become nothing any more, but CPython's decoder decides at the third
        return len(raw[:-2].decode("utf-8", "replace"))
    continuations = (
        [raw + b"\x80" * n + b"a" for n in range(4)] + [raw + b"\xbf" * n + b"a" for n in range(4)] + [raw + b"\x90a"]
    )
    texts = [other.decode("utf-8", "replace") for other in continuations]
    common = 0
    while common < len(text) and all(common < len(other) and other[common] == text[common] for other in texts):
        common += 1
    return common


@given(ids=ids_lists, cuts=st.lists(st.integers(0, 30), max_size=8), skip=st.booleans())
@settings(max_examples=drawn(400))
def test_pieces_join_to_the_decoded_whole(smollm, ids, cuts, skip):
    detokenizer = Detokenizer(smollm, skip_special_tokens=skip)
    pieces = run(detokenizer, split(ids, cuts))
    assert "".join(pieces) == smollm.decode(ids, skip_special_tokens=skip, continues=True)
    assert (detokenizer.consumed, detokenizer.released, detokenizer.stopped) == (len(ids), len(ids), None)


@given(ids=ids_lists, cuts=st.lists(st.integers(0, 30), max_size=8), data=st.data())
@settings(max_examples=drawn(600))
def test_stop_strings_against_the_oracle(smollm, ids, cuts, data):
    check_stops(smollm, ids, cuts, data)


@given(text=text_ids, cuts=st.lists(st.integers(0, 30), max_size=8), data=st.data())
@settings(max_examples=drawn(600))
def test_stop_strings_in_repetitive_text(smollm, text, cuts, data):
    check_stops(smollm, [token for char in text for token in smollm.encode(char)], cuts, data)


def check_stops(smollm, ids, cuts, data):
    whole = smollm.decode(ids, continues=True)
    slices = st.tuples(st.integers(0, len(whole)), st.integers(1, 6)).map(lambda at: whole[at[0] : at[0] + at[1]])
    stops = data.draw(st.lists(st.one_of(slices, st.text("ab \n🎉\ufffd", max_size=4)).filter(bool), max_size=4))
    min_tokens = data.draw(st.integers(0, len(ids) + 1))
    include = data.draw(st.booleans())
    detokenizer = Detokenizer(smollm, stop=stops, min_tokens=min_tokens, include_stop=include)
    pieces = run(detokenizer, split(ids, cuts))
    expected = oracle(smollm, ids, stops, min_tokens, include)
    assert ("".join(pieces), detokenizer.stopped, detokenizer.consumed) == expected
    assert len(detokenizer.offsets) == detokenizer.consumed
    if detokenizer.stopped is None:
        assert detokenizer.released == len(ids)
    else:
        cut = len(expected[0])
        for token, offset in zip(ids[: detokenizer.released], detokenizer.offsets, strict=False):
            assert offset < cut or (offset == cut and token in smollm.special_ids)
        assert all(offset >= cut for offset in detokenizer.offsets[detokenizer.released :])


@given(ids=ids_lists, stop=st.text("ab e\n", min_size=1, max_size=4))
@settings(max_examples=drawn(300))
def test_tokens_are_released_with_their_text(smollm, ids, stop):
    detokenizer = Detokenizer(smollm, stop=[stop])
    text = ""
    for n, token in enumerate(ids, 1):
        text += detokenizer.push([token])
        if detokenizer.stopped is not None:
            break
        assert all(offset <= len(text) for offset in detokenizer.offsets[: detokenizer.released])
        held_from = detokenizer.offsets[detokenizer.released] if detokenizer.released < n else len(text)
        assert len(text) <= settled(smollm, ids[:n], False)
        assert held_from <= settled(smollm, ids[:n], False)


@given(ids=ids_lists, stop=st.text("ab e\n", min_size=1, max_size=4))
@example(ids=[184, 111], stop="a")  # ED A1, the beginning of a surrogate
@settings(max_examples=drawn(300))
def test_no_more_is_held_back_than_must_be(smollm, ids, stop):
    detokenizer = Detokenizer(smollm, stop=[stop])
    text = ""
    for n, token in enumerate(ids, 1):
        text += detokenizer.push([token])
        if detokenizer.stopped is not None:
            return
        certain = smollm.decode(ids[:n], continues=True)[: settled(smollm, ids[:n], False)]
        prefix = max((k for k in range(len(stop)) if certain.endswith(stop[:k])), default=0)
        assert text == certain[: len(certain) - prefix]


def test_offsets_count_characters_and_split_characters_share_one(smollm):
    ids = smollm.encode("a🎉b")
    assert len(ids) == 5
    detokenizer = Detokenizer(smollm)
    released = []
    for token in ids:
        detokenizer.push([token])
        released.append(detokenizer.released)
    assert detokenizer.offsets == [0, 1, 1, 1, 2]
    assert released == [1, 1, 1, 4, 5]


def test_a_special_token_is_released_with_the_token_before_it(smollm):
    detokenizer = Detokenizer(smollm, stop=["bc"])
    assert detokenizer.push([*smollm.encode("ab"), 2]) in ("", "a")
    assert detokenizer.released < detokenizer.consumed
    assert detokenizer.push(smollm.encode("x")) != ""
    assert detokenizer.released == detokenizer.consumed


def test_after_a_stop_nothing_more_is_taken(smollm):
    detokenizer = Detokenizer(smollm, stop=["\n\n", "never"])
    assert detokenizer.push(smollm.encode("one\n\ntwo")) == "one"
    consumed = detokenizer.consumed
    assert detokenizer.push(smollm.encode("three")) == "" and detokenizer.finish() == ""
    assert (detokenizer.stopped, detokenizer.consumed, detokenizer.released) == ("\n\n", consumed, 1)


def test_the_first_complete_stop_wins_then_the_longest(smollm):
    ids = smollm.encode("x abcd y")
    assert run(Detokenizer(smollm, stop=["bcd", "c"]), [ids])[0] == "x ab"
    assert run(Detokenizer(smollm, stop=["c", "abc", "bc"]), [ids])[0] == "x "


def test_min_tokens_lets_early_stops_pass(smollm):
    ids = [smollm.encode(char)[0] for char in "a.b.c.d"]
    assert "".join(run(Detokenizer(smollm, stop=["."], min_tokens=3), [ids])) == "a.b"
    assert "".join(run(Detokenizer(smollm, stop=["."], min_tokens=4), [ids])) == "a.b"
    assert "".join(run(Detokenizer(smollm, stop=["."], min_tokens=5), [ids])) == "a.b.c"
    assert "".join(run(Detokenizer(smollm, stop=["."], min_tokens=7), [ids])) == "a.b.c.d"


def test_an_early_stop_may_overlap_the_one_that_counts(smollm):
    (a,) = smollm.encode("a")
    assert "".join(run(Detokenizer(smollm, stop=["aa"], min_tokens=3), [[a] * 5])) == "a"


def test_stop_strings_are_recognized_wherever_they_end():
    """Every stop string of up to six letters in every text of ten, two letters each."""
    stops = ["".join(letters) for length in range(1, 7) for letters in product("ab", repeat=length)]
    for text in map("".join, product("ab", repeat=10)):
        ends = [text[:i] for i in range(1, 11)]
        for stop in stops:
            matcher = _StopString(stop)
            assert [matcher.feed(char) for char in text] == [end.endswith(stop) for end in ends], (stop, text)


def test_an_empty_stop_string_is_refused(smollm):
    with pytest.raises(ValueError, match="must not be empty"):
        Detokenizer(smollm, stop=["a", ""])


def test_the_work_per_token_does_not_grow(smollm):
    """The text held and kept is bounded by the stop string, however long the answer."""
    detokenizer = Detokenizer(smollm, stop=["aaaab"])
    (a,) = smollm.encode("a")
    pieces = []
    for _ in range(5000):
        pieces.append(detokenizer.push([a]))
        assert len(detokenizer._held) <= 4
    assert pieces[:4] == [""] * 4 and set(pieces[4:]) == {"a"}
    assert detokenizer.finish() == "aaaa"


# --- SentencePiece ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentencepiece():
    """Words with the space mark, and all bytes."""
    words = ["<unk>", "\u2581Hello", "\u2581world", "!", "\u2581", "x"]
    vocab = {word: i for i, word in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    backend = Backend(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<s>"])
    return Tokenizer(backend, {})


@given(ids=st.lists(st.integers(1, 260), max_size=12), cuts=st.lists(st.integers(0, 12), max_size=4))
@example(ids=[4, 4, 1], cuts=[1])
@settings(max_examples=drawn(300))
@pytest.mark.parametrize("continues", [True, False])
def test_the_first_space_goes_only_at_the_start_of_a_text(sentencepiece, continues, ids, cuts):
    pieces = run(Detokenizer(sentencepiece, continues=continues), split(ids, cuts))
    assert "".join(pieces) == sentencepiece.decode(ids, continues=continues)


@given(text=st.text(max_size=10))
@settings(max_examples=drawn(200))
def test_whole_characters_from_bytes_as_hugging_face(sentencepiece, text):
    ids = [1, *(6 + byte for byte in text.encode()), 2]
    assert sentencepiece.decode(ids) == sentencepiece._backend.decode(ids) == f"Hello{text} world"


def test_the_first_space_goes_though_a_special_token_stands_before_it(sentencepiece):
    (bos,) = sentencepiece.special_ids
    detokenizer = Detokenizer(sentencepiece, continues=False)
    assert [detokenizer.push([token]) for token in (bos, 1, 2)] == ["", "Hello", " world"]
    assert detokenizer.offsets == [0, 0, 5]


def test_characters_stream_inside_a_run_of_bytes(sentencepiece):
    detokenizer = Detokenizer(sentencepiece)
    ids = [6 + byte for byte in "é你".encode()]
    assert [detokenizer.push([i]) for i in ids] == ["", "é", "", "", "你"]
    assert detokenizer.push([6 + 0xFF]) == "\ufffd"


@given(
    ids=ids_lists,
    cuts=st.lists(st.integers(0, 30), max_size=8),
    skip=st.booleans(),
    continues=st.booleans(),
    unseen=st.none() | st.integers(0, 300),
)
@settings(max_examples=drawn(400))
def test_each_piece_is_that_of_the_detokenizer(smollm, ids, cuts, skip, continues, unseen):
    plain = PlainDetokenizer(smollm, skip_special_tokens=skip, continues=continues)
    whole = Detokenizer(smollm, skip_special_tokens=skip, continues=continues)

    def one_by_one(piece):
        return "".join(json.loads(plain.push_quoted(token) or '""') for token in piece)

    for piece, quoted in zip(split(ids, cuts), cycle((False, True)), strict=False):
        assert (one_by_one if quoted else plain.push)(piece) == whole.push(piece)
        assert (plain.consumed, plain.stopped) == (whole.consumed, whole.stopped)
    assert plain.finish(unseen) == whole.finish(unseen)
    assert (plain.consumed, plain.released) == (whole.consumed, whole.released)


def test_a_first_space_is_dropped_where_the_vocabulary_puts_one(smollm):
    class Strips:
        special_ids = frozenset({2})
        strips_first_space = True
        token_bytes = staticmethod({0: b" a", 1: b" b", 2: b"<s>"}.__getitem__)
        quoted_texts = QuotedTexts(token_bytes)

    def check(text, **options):
        assert PlainDetokenizer(Strips(), **options).push([2, 0, 1]) == text
        plain = PlainDetokenizer(Strips(), **options)
        assert "".join(json.loads(plain.push_quoted(token) or '""') for token in (2, 0, 1)) == text

    check("a b", continues=False)
    check(" a b")
    check("<s> a b", skip_special_tokens=False, continues=False)
