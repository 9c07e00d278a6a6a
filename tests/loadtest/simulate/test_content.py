"""Simulated texts: ids are equal where the trace says so, and names of blocks are where their hashes would be."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.simulate.content import Content, SimulatedText
from loadtest.workload.plan import Planned
from scheduler.types.block_hash import block_names, root_hash

LENGTHS = st.integers(1, 20)
TEXTS = st.lists(
    st.one_of(
        st.tuples(st.just("session"), st.sampled_from("ab"), LENGTHS),
        st.tuples(st.just("prompt"), st.sampled_from(["x" * 9, "y" * 50]), st.just(0)),
        st.tuples(st.just("own"), st.just(""), LENGTHS),
    ),
    min_size=1,
    max_size=8,
)
PARTS = st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(1, 9)), max_size=5)


def of_kind(kind: str, name: str, length: int, output: int = 1) -> Planned:
    more = {} if kind == "own" else {kind: name}
    return Planned(index=0, intended=0.0, prompt_tokens=length, output_tokens=output, **more)  # type: ignore[arg-type]


def in_parts(ids: list[int], size: int, output: int = 1) -> Planned:
    """A prompt whose last part is one token short, if that leaves any."""
    tokens = max(1 + size * (len(ids) - 1), size * len(ids) - 1)
    return Planned(
        index=0,
        intended=0.0,
        prompt_tokens=tokens,
        output_tokens=output,
        blocks=tuple(ids),
        block_tokens=size,
        line=7,
    )


@given(TEXTS)
def test_ids_are_equal_exactly_where_the_text_is(drawn):
    content, answers, seen = Content(4), [], {}
    for index, (kind, name, length) in enumerate(drawn):
        text = content.text(of_kind(kind, name, length))
        assert len(text.prompt) == (length or len(name) // 4) and len(set(text.prompt)) == 1
        assert seen.setdefault((kind, name, index if kind == "own" else 0), text.prompt[0]) == text.prompt[0]
        answers.append(text.token)
    assert len(set(seen.values())) == len(seen) and len(set(answers)) == len(answers)


def test_block_ids_are_repeated_and_the_last_may_be_shorter():
    assert Content(2).text(in_parts([3, 5], 4)).prompt == [3, 3, 3, 3, 5, 5, 5]
    for bad in (-1, 1 << 31):
        with pytest.raises(ValueError, match=f"line 7: block id {bad}"):
            Content(2).text(in_parts([0, bad], 4))


def hashed(text: SimulatedText, output: int, size: int) -> list[bytes]:
    return block_names(root_hash("m"), text.prompt + [text.token] * output, size)


@given(TEXTS, PARTS, st.integers(1, 5), st.integers(1, 12))
def test_names_are_equal_exactly_where_hashes_are(texts, parts, size, output):
    content = Content(size)
    planned = [of_kind(*each, output) for each in texts] + [in_parts(*each, output) for each in parts]
    found = [content.text(each) for each in planned]
    pairs = []
    for text in found:
        hashes = hashed(text, output, size)
        assert len(text.names) == len(hashes) and text.prompt_names == text.names[: len(text.prompt) // size]
        pairs += zip(text.names, hashes, strict=True)
    for (name, hash_), (other_name, other_hash) in combinations(pairs, 2):
        assert (name == other_name) == (hash_ == other_hash)


def test_a_named_block_of_a_trace_is_found_in_another_prompt_whatever_its_parts():
    """Two parts of two tokens are one of four, if they are equal."""
    content = Content(4)
    one, other = content.text(in_parts([1, 1, 2, 3], 2, 9)), content.text(in_parts([1, 2], 4, 9))
    assert one.names[0] == other.names[0] and not set(one.names[1:]) & set(other.names)


def test_without_names_a_text_has_the_same_ids():
    planned = [of_kind("own", "", 9), of_kind("own", "", 30)]
    named, bare = Content(4), Content(4)
    for each in planned:
        one, other = named.text(each), bare.text(each, named=False)
        assert (one.prompt, one.token) == (other.prompt, other.token)
        assert one.prompt_names and other.names == other.prompt_names == []
