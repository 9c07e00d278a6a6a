"""Heads of blocks on disk: what is written is read, and whatever was changed is no head."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.kv_store.disk.record import (
    PAGE,
    Head,
    checksum,
    pack_ids,
    read_head,
    size_of,
    unpack_ids,
    whole_pages,
    write_head,
)

IDS = st.lists(st.integers(0, 2**32 - 1), max_size=200)
NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=24)
NUMBERS = st.integers(0, 2**64 - 1)
HEADS = st.builds(
    Head,
    key=st.binary(min_size=1, max_size=64),
    ids=IDS.map(pack_ids),
    sequence=NUMBERS,
    length=NUMBERS,
    checksum=NUMBERS,
    codec=NAMES,
)
HEAD = Head(b"k" * 32, pack_ids(range(32)), 7, 4096, 5, "planes2-zstd-1")
SIZE = 16 + 3 * 8 + 24 + 4 + 32 + 128  # bytes that HEAD takes: prefix, fixed fields, key, ids


def page_of(head):
    page = bytearray(b"\xee" * PAGE)
    write_head(head, memoryview(page))
    return page


@given(HEADS)
def test_what_is_written_is_read(head):
    page = page_of(head)
    assert len(page) == PAGE
    assert read_head(memoryview(page)) == head


@given(IDS)
def test_ids_come_back(ids):
    assert unpack_ids(pack_ids(ids)) == tuple(ids)


@given(st.integers(0, SIZE - 1), st.integers(1, 255))
def test_a_changed_byte_anywhere_in_a_head_is_noticed(where, change):
    page = page_of(HEAD)
    page[where] ^= change
    assert read_head(memoryview(page)) is None


@given(st.integers(SIZE, PAGE - 1), st.integers(1, 255))
def test_what_lies_behind_a_head_is_not_part_of_it(where, change):
    page = page_of(HEAD)
    page[where] ^= change
    assert read_head(memoryview(page)) == HEAD


@given(st.integers(0, SIZE), st.booleans())
def test_of_a_head_half_written_over_another_neither_is_taken_for_whole(written, longer):
    old = page_of(
        HEAD._replace(key=b"o" * 32, ids=pack_ids(range(90, 130 if longer else 110)), sequence=2**40, codec="raw")
    )
    new = page_of(HEAD)
    page = new[:written] + old[written:]
    whole = {
        bytes(old[:SIZE]): 8,
        bytes(new[:SIZE]): SIZE,
    }  # where the bytes happen to agree, the page is one of the two
    assert read_head(memoryview(page)) is None or bytes(page[:SIZE]) in whole


@given(st.binary(min_size=PAGE, max_size=PAGE) | st.just(bytes(PAGE)))
def test_random_pages_are_no_heads(page):
    assert read_head(memoryview(page)) is None


@pytest.mark.parametrize(
    "head",
    [
        HEAD._replace(ids=pack_ids(range(1100))),
        HEAD._replace(codec="c" * 25),
        HEAD._replace(key=b"k" * PAGE),
    ],
    ids=["ids", "codec", "key"],
)
def test_what_does_not_fit_a_page_is_refused(head):
    with pytest.raises(ValueError, match="at most 4096 and 24"):
        page_of(head)


def test_the_most_ids_that_fit():
    room = (PAGE - (SIZE - 128)) // 4
    assert read_head(memoryview(page_of(HEAD._replace(ids=pack_ids(range(room)))))).ids == pack_ids(range(room))
    with pytest.raises(ValueError, match="a head of 4100 bytes"):
        page_of(HEAD._replace(ids=pack_ids(range(room + 1))))


@pytest.mark.parametrize(("length", "pages"), [(0, 0), (1, 1), (PAGE, 1), (PAGE + 1, 2), (737280, 180)])
def test_sizes_are_whole_pages(length, pages):
    assert whole_pages(length) == pages * PAGE
    assert size_of(length) == (pages + 1) * PAGE


def test_a_checksum_is_of_content_wherever_it_lies():
    data = bytes(range(256)) * 64
    assert checksum(data) == checksum(memoryview(bytearray(data)))
    assert checksum(data) != checksum(data[:-1] + b"\0")
    assert 0 <= checksum(b"") < 2**64
