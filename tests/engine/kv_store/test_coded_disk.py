"""The disk's codec follows what is measured."""

from itertools import count

import numpy as np
import pytest
import torch

from engine.kv_store.codec import PlanesCodec
from engine.kv_store.coded_disk import CodedDisk, TimedCodec
from engine.kv_store.disk import DiskStore
from engine.kv_store.store import Rows
from scheduler.types.block_hash import BlockKey

BLOCK = 2**16


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
