"""The lossless codec: every block comes back unchanged, and nothing else is ever taken for one."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kv_store.disk.codec import PlanesCodec
from tests.drawn import drawn

CODECS = {size: PlanesCodec(size) for size in (1, 2, 4)}
a_codec = st.sampled_from(list(CODECS.values()))


def cache_like(size, element, seed=0):
    """Numbers whose sizes are close to each other, as keys and values are: uint8 [size]."""
    numbers = np.random.default_rng(seed).normal(size=-(-size // element)).astype("<f4").view("<u4")
    return (numbers >> np.uint32(32 - 8 * element)).astype(f"<u{element}").view(np.uint8)[:size].copy()


def read(codec, data, size):
    out = np.full(size, 0xA5, np.uint8)
    codec.decode(memoryview(data), out)
    return out


@given(a_codec, st.binary(max_size=300))
def test_any_bytes_come_back(codec, block):
    block = np.frombuffer(block, np.uint8)
    assert bytes(read(codec, codec.encode(block), block.size)) == block.tobytes()


@settings(max_examples=drawn(30))
@given(a_codec, st.integers(0, 300_000), st.integers(0, 3), st.sampled_from(["numbers", "zeros", "noise", "ramp"]))
def test_blocks_of_all_sizes_come_back(codec, size, seed, kind):
    block = {
        "numbers": lambda: cache_like(size, 2, seed),
        "zeros": lambda: np.zeros(size, np.uint8),
        "noise": lambda: np.random.default_rng(seed).integers(0, 256, size, np.uint8),
        "ramp": lambda: np.arange(size).astype(np.uint8),
    }[kind]()
    before = block.copy()
    data = codec.encode(block)
    assert np.array_equal(read(codec, data, size), block) and np.array_equal(block, before)
    assert len(data) <= size + size // 100 + 64, "noise costs next to nothing"


@pytest.mark.parametrize(("element", "at_most"), [(2, 0.70), (4, 0.86)])
def test_numbers_of_like_size_become_fewer_bytes(element, at_most):
    """3 bits of the top byte of a bf16 or fp32 are news; the others are noise."""
    block = cache_like(2**18, element)
    assert len(CODECS[element].encode(block)) <= at_most * block.size


def test_planes_fit_the_element():
    block = cache_like(2**18, 2)
    assert len(CODECS[2].encode(block)) < 0.9 * len(CODECS[1].encode(block))
    assert len({codec.name for codec in CODECS.values()}) == len(CODECS)


@pytest.mark.parametrize("element", CODECS)
def test_every_flipped_bit_is_found(element):
    """Or does not matter: some bits of a frame's head say nothing."""
    codec, block = CODECS[element], cache_like(44, element)
    data = codec.encode(block)
    harmless = 0
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with suppress(ValueError):
            assert np.array_equal(read(codec, damaged, block.size), block), f"bit {bit}"
            harmless += 1
    assert harmless <= 4 * element


@settings(max_examples=drawn(60))
@given(a_codec, st.integers(1, 200_000), st.data())
def test_damage_is_found(codec, size, data):
    block = cache_like(size, 2)
    encoded = bytearray(codec.encode(block))
    first = data.draw(st.integers(0, len(encoded) - 1))
    junk = data.draw(st.binary(min_size=1, max_size=40))
    encoded[first : first + len(junk)] = junk  # may grow at the end
    try:
        out = read(codec, encoded, size)
    except ValueError:
        return
    assert np.array_equal(out, block)


@settings(max_examples=drawn(60))
@given(a_codec, st.integers(1, 50_000), st.data())
def test_what_is_cut_short_or_has_something_behind_it_is_refused(codec, size, data):
    encoded = codec.encode(cache_like(size, 2))
    length = data.draw(st.integers(0, len(encoded) - 1))
    for damaged in (encoded[:length], encoded + encoded[: length + 1]):
        with pytest.raises(ValueError):
            read(codec, damaged, size)


@given(a_codec, st.binary(max_size=200), st.integers(0, 2**20))
def test_junk_is_refused(codec, junk, size):
    with pytest.raises(ValueError):
        read(codec, junk, size + 1)


@pytest.mark.parametrize("codec", CODECS.values(), ids=lambda codec: codec.name)
@pytest.mark.parametrize("given", [0, 4, 4096])
def test_a_block_of_another_size_is_refused(codec, given):
    """Also one of a single number, which numpy would repeat."""
    data = codec.encode(cache_like(given, 2))
    for size in {0, 4, 8, 4088, 4096, 4104, 8192} - {given}:
        with pytest.raises(ValueError):
            read(codec, data, size)


def test_nothing_may_stand_between_or_behind_the_frames():
    """Even where the lengths say that it belongs there."""
    codec, block = CODECS[1], cache_like(4096, 1)
    data = codec.encode(block)
    length = int.from_bytes(data[:4], "little")
    for damaged in (data[:4] + b"junk" + data[4:], (length + 4).to_bytes(4, "little") + data[4:] + b"junk"):
        with pytest.raises(ValueError):
            read(codec, damaged, block.size)


def test_a_frame_that_claims_to_be_huge_takes_no_memory():
    codec = CODECS[1]
    frame = b"\x28\xb5\x2f\xfd\xe0" + (2**50).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(ValueError, match="instead of 4096"):
        read(codec, len(frame).to_bytes(4, "little") + frame, 4096)


def test_one_codec_serves_several_threads():
    codec = CODECS[2]
    ready = threading.Barrier(4)

    def there_and_back(seed):
        ready.wait()
        blocks = [cache_like(70_000, 2, seed * 10 + index) for index in range(10)]
        return all(np.array_equal(read(codec, codec.encode(block), block.size), block) for block in blocks)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(there_and_back, range(4)))


def test_numbers_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="3 bytes a number: planes are known for 1, 2, 4"):
        PlanesCodec(3)
