"""The disk's codec follows what is measured: the choice by itself, which does not flicker, and on a real store."""

import itertools
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.kv_store.disk.codec import PlanesCodec
from engine.kv_store.disk.codec_choice import CodecChoice, Rate, seconds_saved
from engine.kv_store.disk.coded_disk import CodedDisk, TimedCodec
from engine.kv_store.disk.disk_store import DiskStore
from engine.kv_store.store import Rows
from scheduler.types.block_hash import BlockKey

BLOCK = 2**16
MB = 1e6
rates = st.floats(1e6, 1e10)


def test_a_rate_is_the_mean_of_what_was_seen_the_newest_counting_most():
    rate = Rate(5.0, keep=0.5)
    assert (rate.value, Rate().value) == (5.0, None)
    rate.saw(100, 10)
    assert rate.value == 10, "the guess is gone"
    rate.saw(300, 10)
    assert rate.value == (50 + 300) / (5 + 10)
    rate.saw(0, 10)
    rate.saw(10, 0)
    assert rate.value == 350 / 15, "nothing learnt from nothing"


@given(st.floats(0.1, 1.2), rates, rates, rates, rates, st.floats(0, 4))
def test_what_is_saved_is_the_difference_of_two_lives(ratio, write, read, encode, decode, reads):
    size = 1e6
    without = size / write + reads * size / read
    coded = size / encode + ratio * size / write + reads * (ratio * size / read + size / decode)
    saved = seconds_saved(size, ratio=ratio, write=write, read=read, encode=encode, decode=decode, reads=reads)
    assert saved == pytest.approx(without - coded, abs=1e-9 * (without + coded))


def choice_at(bandwidth, **options):
    choice = CodecChoice(**options)
    choice.wrote(10**8, 1e8 / bandwidth)
    choice.read(10**8, 1e8 / bandwidth)
    return choice


def test_off_until_the_store_is_known():
    choice = CodecChoice()
    assert not choice.decide()
    choice.wrote(10**6, 1.0)
    assert not choice.decide(), "reads may be much faster"
    choice.read(10**6, 1.0)
    assert choice.decide() and choice.on


@pytest.mark.parametrize(
    ("bandwidth", "on"), [(100 * MB, True), (250 * MB, True), (500 * MB, False), (5000 * MB, False)]
)
def test_it_pays_for_slow_stores(bandwidth, on):
    """0.3 x 2 / bandwidth saved against 1 / 700 MB/s + 1 / 1900 MB/s spent: they are equal at 307 MB/s, less the margin."""
    assert choice_at(bandwidth).decide() is on


def test_reads_that_are_many_turn_it():
    assert not choice_at(350 * MB).decide()
    assert choice_at(350 * MB, reads=8).decide()


def test_what_the_codec_does_here_replaces_the_guess():
    choice = choice_at(300 * MB)
    assert not choice.decide(), "within the margin"
    choice.encoded(10**8, 4 * 10**7, 0.1)
    choice.decoded(10**8, 0.05)
    assert choice.decide()
    for _ in range(40):
        choice.encoded(10**8, 10**8, 0.1)
    assert not choice.decide(), "these blocks do not compress"


def test_it_does_not_flicker_about_the_break_even():
    choice, seen = choice_at(200 * MB), set()
    assert choice.decide()
    for bandwidth, _ in zip(itertools.cycle([290 * MB, 325 * MB]), range(60), strict=False):
        choice.wrote(10**8, 1e8 / bandwidth)
        choice.read(10**8, 1e8 / bandwidth)
        seen.add(choice.decide())
    assert seen == {True}
    for _ in range(60):
        choice.wrote(10**8, 1e8 / (600 * MB))
        choice.read(10**8, 1e8 / (600 * MB))
    assert not choice.decide()


def ticking(step):
    """A clock that goes on by `step` seconds each time it is read."""
    ticks = count()
    return lambda: next(ticks) * step


@pytest.fixture
def coded(tmp_path):
    """A store by the seconds that a call of the disk and one of the codec take."""
    made = []

    def make(disk_seconds, codec_seconds):
        codec = TimedCodec(PlanesCodec(2), ticking(codec_seconds))
        disk = DiskStore(tmp_path / "kv", block_bytes=BLOCK, fingerprint="f", limit_bytes=2**24, codecs=[codec])
        made.append(CodedDisk(disk, codec, 4, ticking(disk_seconds)))
        return made[-1]

    yield make
    for store in made:
        store.close()


def blocks(number):
    """bf16 numbers of one magnitude, as keys and values are; their names."""
    values = torch.from_numpy(np.random.default_rng(7).normal(size=(number, BLOCK // 2))).to(torch.bfloat16)
    return values.view(torch.uint8), [BlockKey(bytes([i]) * 16, (i,)) for i in range(number)]


def test_a_slow_disk_is_given_coded_blocks_and_gives_them_back(coded):
    store = coded(disk_seconds=1.0, codec_seconds=1e-6)
    rows, block_keys = blocks(6)
    first = store.put(block_keys[:2], Rows(rows, [0, 1]))
    out = torch.zeros_like(rows)
    assert store.get(block_keys[:2], Rows(out, [0, 1])) == [True, True]
    later = store.put(block_keys[2:], Rows(rows, [2, 3, 4, 5]))
    assert max(later) < min(first), "coded once writing and reading had both been seen"
    assert all(store.get(block_keys, Rows(out, range(6))))
    assert torch.equal(out, rows)
    store.check_integrity()


def test_a_fast_disk_is_not(coded):
    store = coded(disk_seconds=1e-6, codec_seconds=1.0)
    rows, block_keys = blocks(6)
    for begin in (0, 2, 4):
        pair, out = block_keys[begin : begin + 2], torch.zeros_like(rows)
        assert len(set(store.put(pair, Rows(rows, [begin, begin + 1])))) == 1
        assert all(store.get(pair, Rows(out, [begin, begin + 1])))
    assert store.disk.codec is None


def test_what_was_coded_is_read_after_the_choice_has_changed(coded):
    store = coded(disk_seconds=1.0, codec_seconds=1e-6)
    rows, block_keys = blocks(4)
    store.disk.codec = store._codec
    store.disk.put(block_keys[:2], Rows(rows, [0, 1]))
    store.disk.codec = None
    store.disk.put(block_keys[2:], Rows(rows, [2, 3]))
    out = torch.zeros_like(rows)
    assert all(store.get(block_keys, Rows(out, range(4)))) and torch.equal(out, rows)
