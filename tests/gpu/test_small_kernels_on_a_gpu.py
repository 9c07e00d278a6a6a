"""Kernels beside attention and products, and blocks at the end of a pool of 42 GB; as in `tests.gpu.test_kernels_on_a_gpu`."""

import pytest
import torch

from kernels.gpu.attention.attention_mass import attention_mass
from kernels.gpu.attention.decode import decode_attention
from kernels.gpu.attention.decode_work import plan_decode
from kernels.gpu.attention.paged import paged_attention
from kernels.gpu.attention.reference import reference_attention
from kernels.gpu.kv.block_copy import copy_blocks, reference_copy_blocks
from kernels.gpu.kv.write_kv import write_kv
from kernels.gpu.norm.embedding import embed, reference_embed
from kernels.gpu.norm.rms_norm import last_norm, reference_last_norm, reference_rms_norm, rms_norm
from kernels.gpu.norm.silu_mul import reference_silu_mul, silu_mul
from kernels.gpu.sampling.penalties import count_tokens, reference_count_tokens
from kernels.gpu.sampling.sample import BatchSettings, RowSettings, reference_sample, sample
from tests.gpu.kernel_checks import Batch, close
from tests.gpu.test_kernels_on_a_gpu import LLAMA, SMALL, both

SMALL_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 2**-7}
WIDTHS = [(4096, torch.bfloat16), (576, torch.bfloat16), (3584, torch.float16), (8192, torch.bfloat16)]


def drawn(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("device", "hidden", "dtype"), both([(80, torch.float32)], WIDTHS))
def test_norms(device, hidden, dtype):
    x, before, weight = (drawn(seed, 37, hidden, dtype=dtype) for seed in (1, 2, 3))
    weight, rows = weight[0].float(), torch.tensor([36, 0, 5, 5])
    there = [part.to(device) for part in (x, weight, before, rows)]
    for residual in (None, there[2]):
        kept = None if residual is None else before
        wanted = reference_rms_norm(x, weight, 1e-5, kept)
        for found, part in zip(rms_norm(there[0], there[1], 1e-5, residual), wanted, strict=True):
            close(found, part, SMALL_TOLERANCE[dtype])
        found = last_norm(there[0], there[1], 1e-5, residual, there[3])
        close(found, reference_last_norm(x, weight, 1e-5, kept, rows), SMALL_TOLERANCE[dtype])


@pytest.mark.parametrize(("device", "inner", "dtype"), both([(80, torch.float32)], [(14336, torch.bfloat16), *WIDTHS]))
def test_gates(device, inner, dtype):
    both_halves = 4 * drawn(4, 37, 2 * inner, dtype=dtype)
    close(silu_mul(both_halves.to(device)), reference_silu_mul(both_halves), SMALL_TOLERANCE[dtype])


@pytest.mark.parametrize(("device", "hidden", "dtype"), both([(80, torch.float32)], WIDTHS))
def test_embedding(device, hidden, dtype):
    table = drawn(5, 300, hidden, dtype=dtype)
    ids = torch.tensor([0, 299, 100, 399, 400, 99, 7])
    for first in (0, 100):
        found = embed(table.to(device), ids.to(device), first=first)
        assert torch.equal(found.cpu(), reference_embed(table, ids, first=first))


@pytest.mark.parametrize(("device", "block_bytes"), both([(20,), (4100,)], [(20,), (4 << 20,), (4100,)]))
def test_blocks_are_copied(device, block_bytes):
    source = torch.randint(0, 256, (9, block_bytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(6))
    target = torch.full((8, block_bytes), 7, dtype=torch.uint8)
    moves = torch.tensor([[8, 0, 3, 3], [1, 7, 0, 4]])
    found = target.to(device)
    copy_blocks(source.to(device), found, moves.to(device))
    reference_copy_blocks(source, target, moves)
    assert torch.equal(found.cpu(), target)


@pytest.mark.parametrize(
    ("device", "options"), both([(SMALL,)], [(LLAMA,), (LLAMA | {"fp8": True},), (LLAMA | {"window": 100},)])
)
def test_attention_mass(device, options):
    """Of the newest row of each chunk, and of single rows."""
    options = dict(options)
    window = options.pop("window", 0)
    chunks = [(3, 3), (5, 40)] if device == "cpu" else [(33, 33), (5, 140), (65, 129), (2, 9000)]
    for lengths in (chunks, [(1, keys) for _, keys in chunks]):
        batch = Batch(device, lengths, **options)
        wanted = reference_attention(*batch.host, scale=0.1, scales=batch.scales, window=window)
        sums = torch.empty(batch.q.shape[:2], device=device)
        there, other = batch.there, {"scale": 0.1, "scales": batch.scales_there, "window": window}
        paged_attention(*there, longest=batch.longest, log_sums=sums, **other)
        single = batch.longest == 1
        found = torch.full(wanted.mass.shape, float("nan"), device=device)
        attention_mass(there[0], sums, there[1], None if single else there[2], *there[3:], found, **other)
        close(found, wanted.mass, 1e-5 if batch.q.dtype == torch.float32 else 2e-3)
        close(found.sum(2), torch.ones(found.shape[:2]), 1e-3)


PENALTIES = {"repetition": 1.3, "presence": 0.4, "frequency": 0.2}
DRAWS = [{"temperature": 0.0}, {}, {"min_p": 0.05}, {"min_p": 0.2, "top_p": 0.9, "top_k": 40}]


@pytest.mark.parametrize(
    ("device", "vocab", "dtype"),
    both([(4500, torch.float32)], [(128256, torch.bfloat16), (151936, torch.float32), (49152, torch.float16)]),
)
def test_penalties_and_min_p(device, vocab, dtype):
    """Every draw with and without penalties; the counts are the host's."""
    times = 1 if device == "cpu" else 4
    rows = [
        RowSettings(**draw, **(PENALTIES if penalized else {}), seed=seed, position=9, slot=seed % 5)
        for seed, (draw, penalized) in enumerate((draw, penalized) for draw in DRAWS * times for penalized in (0, 1))
    ]
    rng = torch.Generator().manual_seed(vocab)
    logits = (3 * torch.randn(len(rows), vocab, generator=rng)).to(dtype)
    counts = torch.zeros(5, vocab, dtype=torch.int32)
    there = counts.to(device)
    for output in (False, True):
        slots = torch.randint(-1, 5, (999,), generator=rng)
        tokens = torch.randint(-1, vocab // 8, (999,), generator=rng)
        reference_count_tokens(counts, slots, tokens, output=output)
        count_tokens(there, slots.to(device), tokens.to(device), output=output)
    assert torch.equal(there.cpu(), counts)
    found = sample(logits.to(device), BatchSettings.of(rows, torch.device(device)), there).cpu()
    wanted = reference_sample(logits, BatchSettings.of(rows, torch.device("cpu")), counts)
    assert (found != wanted).sum() <= len(rows) // 16  # fp32 against fp64: two scores may be that close
    assert torch.equal(found[:2], wanted[:2])  # greedy


@pytest.mark.parametrize(("device", "blocks", "layers", "dim"), both([(7, 2, 16)], [(10_000, 32, 128)]))
@pytest.mark.parametrize("fp8", [False, True])
def test_blocks_at_the_end_of_a_large_pool(device, blocks, layers, dim, fp8):
    """Written and read there as in a small one, bit for bit: offsets beyond 2^31 elements and 2^32 bytes."""
    heads, kv_heads, length = (32, 8, 70) if device == "cuda" else (2, 1, 9)
    each = -(-length // 32)
    place = torch.device(device)
    near, far = [0, 1, 2, 3, 4, 5], [blocks - 1, 0, blocks // 2, blocks - 2, 1, blocks - 3]
    q_and_kv = drawn(8, 2 * length, (heads + 2 * kv_heads) * dim, dtype=torch.float16).to(place)
    angles = drawn(9, length, dim // 2).to(place)

    def attended(count, ids):
        tables = torch.tensor([ids[:each], ids[each : 2 * each]], dtype=torch.int32, device=place)
        shape = (count, layers, 2, kv_heads, 32, dim)
        storage = torch.empty(shape, dtype=torch.uint8 if fp8 else torch.float16, device=place)
        scales = torch.empty(shape[:4], device=place)[:, -1] if fp8 else None
        kv = storage[:, -1].view(torch.float8_e4m3fn) if fp8 else storage[:, -1]
        at = torch.arange(length, device=place)
        slots = (tables[:, at // 32].long() * 32 + at % 32).flatten()
        q = write_kv(
            q_and_kv, kv, at.repeat(2), slots, angles.cos(), angles.sin(), heads=heads, kv_heads=kv_heads, scales=scales
        )
        lengths = torch.full((2,), length, dtype=torch.int32, device=place)
        starts = torch.arange(3, dtype=torch.int32, device=place)
        options = {"scale": 0.1, "scales": scales}
        chunks = paged_attention(q, kv, starts * length, lengths, tables, longest=length, **options)
        work = plan_decode(lengths, starts[:2] * each, tables.flatten(), kv_heads=kv_heads, longest_kv=length)
        return chunks, decode_attention(q[length - 1 :: length].contiguous(), kv, work, **options)

    for found, wanted in zip(attended(blocks, far), attended(6, near), strict=True):
        assert torch.equal(found, wanted)
        assert found.isfinite().all()
    if device == "cuda":
        torch.cuda.empty_cache()  # others are checked beside this
