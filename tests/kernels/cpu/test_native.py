"""The C++ kernels against plain torch, every variant this processor runs."""

import random
from functools import cache
from pathlib import Path

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cpu import native_reference as reference
from kernels.cpu.build import build, compile_library, compiler
from kernels.cpu.native import NativeChunk, NativeOps
from kernels.cpu.packing import pack_float, pack_gguf, unpack
from kernels.cpu.variants import VARIANTS, choose, supported
from tests.drawn import drawn

pytestmark = pytest.mark.skipif(not supported() or compiler() is None, reason="no C++ compiler, or another processor")

KINDS = {
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
    "Q4_1": gguf.GGMLQuantizationType.Q4_1,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
}


@pytest.fixture(
    scope="session",
    params=[
        # Those between this processor's best and the last are built with the long tests only: each takes 15 s.
        pytest.param(variant.name, marks=[pytest.mark.long] * (variant not in (*supported()[:1], VARIANTS[-1])))
        for variant in VARIANTS
    ],
)
def ops(request):
    """Each variant, on two threads."""
    variant = next(variant for variant in VARIANTS if variant.name == request.param)
    if variant not in supported():
        pytest.skip(f"this processor lacks {sorted(variant.needs)}")
    build([variant])
    return NativeOps(variant.library, 2)


EMULATED = {"avx512": (), "avx512_bf16": ("-DEMULATE_VNNI",)}


@pytest.fixture(scope="session", params=EMULATED)
def emulated(request, tmp_path_factory):
    """The code for AVX-512 on a processor with AVX2, its instructions in plain C++ (`emulated.h`)."""
    library = tmp_path_factory.mktemp("emulated") / f"{request.param}.so"
    header = str(Path(__file__).parent / "emulated.h")
    compile_library(compiler(), ("-O1", "-mavx2", "-include", header, *EMULATED[request.param]), library)
    return NativeOps(library, 2)


def weights(outputs, columns, seed=0):
    return torch.randn(outputs, columns, generator=torch.Generator().manual_seed(seed))


def stored(kind, weight):
    """GGUF bytes of `weight`, and the values they stand for, both by the gguf package."""
    groups = gguf.quants.quantize(weight.numpy(), KINDS[kind])
    return torch.from_numpy(groups), torch.from_numpy(gguf.quants.dequantize(groups, KINDS[kind]))


def test_floats_are_rounded_to_eight_bits():
    weight = weights(48, 128)
    weight[5, 32:64] = 0
    error = (unpack(pack_float(weight)) - weight).view(48, -1, 32)
    most = weight.view(48, -1, 32).abs().amax(dim=-1)
    assert (error.abs().amax(dim=-1) <= most / 127 * 0.6).all()  # half a step, and the fp16 of the scale


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 12, 13, 31, 100])
def test_linear(ops, kind, rows):
    packed = pack_gguf(stored(kind, weights(83, 160))[0], kind)
    inputs = weights(rows, 160, seed=rows) * torch.logspace(-3, 3, rows)[:, None]
    _close(ops.linear(inputs, packed), reference.linear(inputs, packed))


def test_scales_may_be_negative(ops):
    """As those of Q5_0 and IQ4_NL, which become 8-bit groups: their largest number has the sign of its weight."""
    groups = stored("Q8_0", weights(83, 160))[0].clone()
    groups.view(-1, 34)[::3, 1] ^= 0x80
    packed = pack_gguf(groups, "Q8_0")
    inputs = weights(5, 160)
    _close(ops.linear(inputs, packed), reference.linear(inputs, packed))
    whole = inputs @ unpack(packed).T
    assert (ops.linear(inputs, packed) - whole).norm() < 0.02 * whole.norm()  # the activations are rounded


def _close(ours, theirs):
    """Relative to each row's size: rows differ by a million here."""
    assert ((ours - theirs).abs().amax(dim=1) <= 2e-5 * theirs.abs().amax(dim=1)).all()


def test_extreme_activations_and_weights(ops):
    """All products at their largest, which is where 16-bit sums would saturate."""
    for kind in KINDS:
        for sign in (1.0, -1.0):
            packed = pack_gguf(stored(kind, torch.full((16, 64), sign) * torch.tensor([1.0, 0.5]).repeat(32))[0], kind)
            inputs = torch.full((2, 64), 3.0)
            _close(ops.linear(inputs, packed), reference.linear(inputs, packed))


@pytest.mark.parametrize("rows", [1, 7, 4096, 3 * 4096 + 5])
def test_reading_sees_every_number(ops, rows):
    memory = torch.randint(-(2**31), 2**31, (rows, 16), generator=torch.Generator().manual_seed(rows)).to(torch.int32)
    assert torch.equal(ops.read(memory), memory.sum(dim=0).to(torch.int32))


def test_products_that_wait_for_nothing_are_products(ops):
    draw = torch.Generator().manual_seed(4)
    rows = torch.randint(-127, 128, (4, 32), generator=draw).to(torch.int8)
    quads = torch.randint(0, 16, (8, 16, 4), generator=draw).to(torch.uint8)
    columns = quads.transpose(1, 2).reshape(32, 16)
    assert ops.products(3, rows, quads) == int((rows.long() @ columns.long()).sum())


def test_a_row_does_not_depend_on_its_company(ops):
    packed = pack_gguf(stored("Q4_1", weights(64, 96))[0], "Q4_1")
    inputs = weights(40, 96)
    together = ops.linear(inputs, packed)
    for row in range(40):
        assert torch.equal(ops.linear(inputs[row : row + 1], packed)[0], together[row])


def test_what_is_not_finite_stays_in_its_row(ops):
    packed = pack_gguf(stored("Q8_0", weights(32, 64))[0], "Q8_0")
    inputs = weights(5, 64)
    clean = ops.linear(inputs, packed)
    for value in (float("nan"), float("inf"), -float("inf")):
        broken = inputs.clone()
        broken[2, 40] = value
        out = ops.linear(broken, packed)
        assert out[2].isnan().all()
        assert torch.equal(out[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


# --- attention ---


def pool(blocks, layers, kv_heads, size, dim):
    """Every bit set: NaN wherever nothing was written."""
    return torch.full((blocks, layers, kv_heads, 2, size * dim // 2), -1, dtype=torch.int32)


def still(positions, dim):
    """Rotary factors that rotate nothing."""
    return {"cos": torch.ones(positions, dim // 2), "sin": torch.zeros(positions, dim // 2)}


def table(blocks, total, seed):
    return random.Random(seed).sample(range(total), blocks)


TOTAL = 40  # blocks of two sequences


@cache
def two_sequences(heads, kv_heads, dim, size, window):
    """Steps over both: their chunks, the rows, and what comes out. The same for every variant, and slow to compute."""
    theirs = torch.zeros(TOTAL, 2, kv_heads, 2, size * dim // 2, dtype=torch.int32)
    blocks, generator = table(TOTAL, TOTAL, seed=size), torch.Generator().manual_seed(dim + window)
    steps, done = [], 0
    for rows in (37, 1, 1, 100, 1, 5):
        chunks = [NativeChunk(rows, done, half) for half in (blocks[: TOTAL // 2], blocks[TOTAL // 2 :])]
        qkv = torch.randn(2 * rows, (heads + 2 * kv_heads) * dim, generator=generator)
        steps.append((chunks, qkv, reference.attention(qkv, chunks, theirs, heads=heads, layer=1, window=window)))
        done += rows
    return steps


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 32), (8, 1, 80), (4, 2, 128), (2, 1, 256), (4, 2, 16)]
)
@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("window", [0, 21])
def test_attention_over_scattered_blocks(ops, heads, kv_heads, dim, size, window):
    """A prompt in chunks, then single tokens, beside another sequence; window or none."""
    ours = pool(TOTAL, 2, kv_heads, size, dim)
    for chunks, qkv, expected in two_sequences(heads, kv_heads, dim, size, window):
        out = ops.attention(
            qkv.clone(), chunks, ours, heads=heads, layers=range(1, 2), window=window, **still(200, dim)
        )
        torch.testing.assert_close(out, expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize(("scale", "cap"), [(0.4, None), (None, 1.5), (0.6, 50.0), (3.0, 0.5)])
def test_scores_are_scaled_and_capped(ops, scale, cap):
    """Caps below, within and above the scores; a prompt and single tokens, of which the last keys are a part of a vector."""
    heads, kv_heads, dim = 4, 2, 32
    ours, theirs = pool(12, 1, kv_heads, 16, dim), torch.zeros(12, 1, kv_heads, 2, 16 * dim // 2, dtype=torch.int32)
    for start, rows in ((0, 150), (150, 1), (151, 9), (160, 1)):
        chunk = NativeChunk(rows, start, list(range(11, -1, -1)))
        qkv = weights(rows, (heads + 2 * kv_heads) * dim, seed=rows + start)
        how = {"scale": scale, "soft_cap": cap}
        expected = reference.attention(qkv, [chunk], theirs, heads=heads, layer=0, window=0, **how)
        plain = reference.attention(qkv, [chunk], theirs, heads=heads, layer=0, window=0)
        turned = still(200, dim)
        out = ops.attention(qkv.clone(), [chunk], ours, heads=heads, layers=range(1), window=0, **turned, **how)
        assert (out - expected).abs().max() < 0.03
        assert (plain - expected).abs().mean() > 0.01, "the reference would not tell"


def test_the_first_dimensions_of_a_head_are_turned(ops):
    heads, kv_heads, dim, rotated = 2, 1, 32, 12
    qkv = weights(20, (heads + 2 * kv_heads) * dim)
    angles = torch.arange(20)[:, None] * torch.logspace(0, -2, rotated // 2)
    ours = qkv.clone()
    how = {"heads": heads, "layers": range(1), "window": 0, "cos": angles.cos(), "sin": angles.sin()}
    ops.attention(ours, [NativeChunk(20, 0, [0, 1])], pool(2, 1, kv_heads, 16, dim), **how)
    turned = qkv.view(20, -1, dim)[:, : heads + kv_heads].clone()
    first, second = turned[..., : rotated // 2].clone(), turned[..., rotated // 2 : rotated].clone()
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    turned[..., : rotated // 2], turned[..., rotated // 2 : rotated] = (
        first * cos - second * sin,
        second * cos + first * sin,
    )
    torch.testing.assert_close(ours.view(20, -1, dim)[:, : heads + kv_heads], turned)
    assert torch.equal(ours.view(20, -1, dim)[:, heads + kv_heads :], qkv.view(20, -1, dim)[:, heads + kv_heads :])


def test_the_cache_is_written_as_the_reference_reads_it(ops):
    heads, kv_heads, dim, size = 4, 2, 32, 32
    storage = pool(4, 1, kv_heads, size, dim)
    qkv = weights(70, (heads + 2 * kv_heads) * dim)
    chunk = NativeChunk(70, 0, [2, 0, 3])
    ops.attention(qkv, [chunk], storage, heads=heads, layers=range(1), window=0, **still(70, dim))
    keys = qkv[:, heads * dim : (heads + kv_heads) * dim].view(70, kv_heads, dim).bfloat16().float()
    values = qkv[:, (heads + kv_heads) * dim :].view(70, kv_heads, dim).bfloat16().float()
    for position in range(70):
        key, value = reference.read(storage, chunk, 0, position, dim)
        assert torch.equal(key, keys[position])
        assert torch.equal(value, values[position])


@settings(max_examples=drawn(25))
@given(st.lists(st.integers(1, 90), min_size=1, max_size=8), st.integers(0, 50), st.randoms(use_true_random=False))
def test_a_row_is_the_same_bits_however_its_prompt_is_cut(cuts, window, rng):
    """In chunks of any size, from the best variant: what makes preemption, prefix hits and batches change nothing."""
    library = choose().library
    if library is None:
        build(supported()[:1])
        library = choose().library
    best = NativeOps(library, 2)
    heads, kv_heads, dim, size, length = 6, 2, 32, 16, sum(cuts)
    qkv = weights(length, (heads + 2 * kv_heads) * dim)
    blocks = -(-length // size)

    def run(chunks_of):
        storage, out, done, order = pool(blocks, 1, kv_heads, size, dim), [], 0, rng.sample(range(blocks), blocks)
        for rows in chunks_of:
            part = qkv[done : done + rows].clone()
            chunk = NativeChunk(rows, done, order)
            out.append(
                best.attention(
                    part, [chunk], storage, heads=heads, layers=range(1), window=window, **still(length, dim)
                )
            )
            done += rows
        return torch.cat(out)

    assert torch.equal(run(cuts), run([length]))


def test_the_best_build_that_is_there_is_chosen(monkeypatch, tmp_path):
    monkeypatch.setattr("kernels.cpu.variants.BUILDS", tmp_path)
    assert choose().library is None
    assert "python -m kernels.cpu.build" in choose().reason
    worst = supported()[-1]
    worst.library.touch()
    assert choose().library == worst.library
    best = supported()[0]
    best.library.touch()
    assert choose().library == best.library
    monkeypatch.setattr("kernels.cpu.variants.cpu_flags", lambda: frozenset({"sse2"}))
    assert choose().library is None
    assert "AVX2" in choose().reason


def test_chunks_must_make_the_rows(ops):
    with pytest.raises(ValueError, match="do not make 3"):
        ops.attention(
            torch.zeros(3, 64),
            [NativeChunk(2, 0, [0])],
            pool(1, 1, 1, 16, 16),
            heads=2,
            layers=range(1),
            window=0,
            **still(4, 16),
        )


@pytest.mark.parametrize("vocabulary", [16, 32, 50, 1000, 49152])
def test_masks_bar_what_has_no_bit_and_hide_nothing_that_is_broken(ops, vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(7, vocabulary, generator=generator)
    logits[2, ::3], logits[4, ::5] = torch.nan, torch.inf
    allowed = torch.randint(-(2**31), 2**31, (5, -(-vocabulary // 32)), generator=generator).int()
    allowed[1], allowed[2, 0], allowed[3] = -1, -1, 0
    rows = [6, 2, 4, 0, 3]
    found, expected = logits.clone(), reference.mask(logits, rows, allowed)
    ops.mask(found, rows, allowed)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    ops.mask(found, rows[:1], allowed[:1])
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True, msg="masked once more, alone")
