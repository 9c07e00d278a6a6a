"""Kernels on any device against their references on the CPU: compiled where there is a GPU, interpreted elsewhere.

Inputs are made on the CPU, so both see the same. What must not be read is NaN, never a wild address: on a GPU that would end the
process, and every check after it.
"""

import random
from dataclasses import fields, replace

import torch

from kernels.gpu.attention.boxes import by_boxes
from kernels.gpu.attention.chunk_work import plan_chunks
from kernels.gpu.attention.decode import decode_attention
from kernels.gpu.attention.decode_work import plan_decode
from kernels.gpu.attention.launch import chip
from kernels.gpu.attention.merge_states import merge_states, reference_merge_states
from kernels.gpu.attention.paged import config_for, paged_attention, tile_height
from kernels.gpu.attention.reference import reference_attention
from kernels.gpu.kv.write_kv import reference_write_kv, write_kv
from kernels.gpu.linear.quantized import quantized_linear, reference_quantized_linear
from kernels.gpu.linear.quantized_matrix import pack
from kernels.gpu.sampling.token_logprobs import reference_token_logprobs, token_logprobs
from tests.kernels.gpu.attention import test_cascade, test_merge_states
from tests.kernels.gpu.attention.cases import Case
from tests.kernels.gpu.kv import test_write_kv

FP8 = torch.float8_e4m3fn
# Weights of the softmax go to the tensor cores in the type of the values: half a unit of its last place, times values of up to 4.
ATTENTION = {torch.float32: 5e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
PRODUCT = {torch.float32: 2e-6, torch.float16: 2**-9, torch.bfloat16: 2**-7}  # of the largest result


def close(found, wanted, tolerance):
    torch.testing.assert_close(found.cpu(), wanted, atol=tolerance, rtol=tolerance)


def eight_bits(kv, seed):
    """fp32 [blocks, 2, kv_heads, block_size, dim] in fp8, and its scales."""
    scales = 0.01 + 0.05 * torch.rand(kv.shape[:3], generator=torch.Generator().manual_seed(seed))
    return (kv / scales[..., None, None]).clamp(-448, 448).to(FP8), scales


class Batch:
    """A `Case` whose tables end in a block of NaN, on the CPU and on a device, where a pool's layers lie side by side."""

    def __init__(self, device, lengths, *, heads, dim, dtype, fp8=False):
        case = Case(lengths, heads=heads, dim=dim, block_size=32, dtype=torch.float32 if fp8 else dtype)
        used = set(case.block_tables.flatten().tolist())
        unused = next(block for block in range(len(case.kv)) if block not in used)
        tables = case.block_tables.masked_fill(case.block_tables == 2**31 - 1, unused)
        kv, scales = eight_bits(case.kv, 0) if fp8 else (case.kv, None)
        layers = torch.stack((torch.full_like(kv.float(), float("nan")).to(kv.dtype), kv), 1)
        self.q, self.longest = case.q.to(dtype), case.longest
        self.host = (self.q, kv, case.row_starts, case.kv_lengths, tables)
        self.there = (self.q.to(device), layers.to(device)[:, 1], *(part.to(device) for part in self.host[2:]))
        self.scales, self.scales_there = scales, None if scales is None else scales.to(device)

    def check(self, found, sums, **options):
        wanted = reference_attention(*self.host, scale=0.1, scales=self.scales, **options)
        close(found, wanted.out, ATTENTION[self.q.dtype])
        torch.testing.assert_close(
            sums.cpu(), wanted.log_sums, rtol=0, atol=1e-4 if self.q.dtype == torch.float32 else 2e-3
        )


def check_decode(device, lengths, *, heads, dim, dtype, fp8=False, **options):
    batch = Batch(device, [(1, keys) for keys in lengths], heads=heads, dim=dim, dtype=dtype, fp8=fp8)
    q, kv, _, kv_lengths, tables = batch.there
    sums = torch.full(q.shape[:2], float("nan"), device=device)
    starts = torch.arange(len(lengths), dtype=torch.int32, device=device) * tables.shape[1]
    places = {"kv_heads": heads[1], "longest_kv": max(lengths), "window": options.get("window", 0)}
    work = plan_decode(kv_lengths, starts, tables.flatten(), **places)
    cap = options.get("soft_cap", 0.0)
    found = decode_attention(q, kv, work, scale=0.1, soft_cap=cap, scales=batch.scales_there, log_sums=sums)
    batch.check(found, sums, **options)


def check_paged(device, lengths, *, heads, dim, dtype, fp8=False, boxes=False, **options):
    batch = Batch(device, lengths, heads=heads, dim=dim, dtype=dtype, fp8=fp8)
    sums = torch.full(batch.q.shape[:2], float("nan"), device=device)
    config = None
    if boxes:
        where = batch.q.element_size(), chip(torch.device(device))
        config = by_boxes(config_for(heads[0] // heads[1], dim, *where), batch.there[1])
        assert config.boxes
    found = paged_attention(
        *batch.there,
        scale=0.1,
        longest=batch.longest,
        scales=batch.scales_there,
        log_sums=sums,
        config=config,
        **options,
    )
    batch.check(found, sums, **options)


def check_split(device, lengths, *, heads, dim, dtype, fp8=False):
    batch = Batch(device, lengths, heads=heads, dim=dim, dtype=dtype, fp8=fp8)
    group, where = heads[0] // heads[1], torch.device(device)
    height = tile_height(group, dim, dtype.itemsize, where, fp8=fp8)
    work = plan_chunks(lengths, group=group, kv_heads=heads[1], height=height, device=where)
    assert work is not None and work.states
    sums = torch.full(batch.q.shape[:2], float("nan"), device=device)
    options = {"longest": batch.longest, "scales": batch.scales_there}
    found = paged_attention(*batch.there, scale=0.1, log_sums=sums, work=work, **options)
    batch.check(found, sums)
    assert not work.arrived.any()


def check_cascade(device, prefixes, *, heads, dim, dtype, fp8=False):
    case = test_cascade.Shared(prefixes, heads=heads, dim=dim, dtype=dtype)
    if fp8:
        case.kv, case.scales = eight_bits(case.kv.float(), 1)
    wanted = case.reference()
    case.device, case.q, case.kv = torch.device(device), case.q.to(device), case.kv.to(device)
    case.scales = None if case.scales is None else case.scales.to(device)
    close(case.cascade(), wanted, 3 * ATTENTION[dtype])  # its scale is three times the others'


def check_merge(device, parts, *, heads, dim, dtype):
    outputs, log_sums = test_merge_states.drawn(parts, rows=3, heads=heads, dim=dim, dtype=dtype)
    found, sums = merge_states(outputs.to(device), log_sums.to(device))
    wanted, wanted_sums = reference_merge_states(outputs, log_sums)
    close(found, wanted, {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2**-7}[dtype])
    close(sums, wanted_sums, 1e-5)


def check_product(device, rows, form, bits, group, *, outputs, columns, dtype, bias=False):
    rng = torch.Generator().manual_seed(rows)
    low, high, kind = (0, 16, torch.uint8) if bits == 4 else (-128, 128, torch.int8)
    groups = columns // group if group else 1
    scales = torch.rand(outputs, groups, generator=rng) * 0.02 + 0.001
    extras = {
        "zeros": torch.randint(0, 16, (outputs, groups), generator=rng),
        "minima": torch.randn(outputs, groups, generator=rng) * 0.05,
    }.get(form)
    quants = torch.randint(low, high, (outputs, columns), generator=rng).to(kind)
    matrix = pack(quants, scales, extras, form=form, bits=bits, group=group)
    x = torch.randn(rows, columns, generator=rng).to(dtype)
    added = torch.randn(outputs, generator=rng).to(dtype) if bias else None
    wanted = reference_quantized_linear(x, matrix, added)
    found = quantized_linear(x.to(device), matrix.to(device), None if added is None else added.to(device))
    tolerance = PRODUCT[dtype] * wanted.abs().max().item()
    torch.testing.assert_close(found.cpu(), wanted, atol=tolerance, rtol=0)


def check_write(device, *, heads, kv_heads, dim, dtype, norms):
    drawn = test_write_kv.case(1, heads, kv_heads, dim, block_size=32, rows=33, dtype=dtype, norms=norms)
    slots = drawn.slots.clone()
    slots[[0, 7]] = -1
    drawn = replace(drawn, slots=slots)
    parts = {field.name: getattr(drawn, field.name) for field in fields(drawn)}
    there = replace(drawn, **{name: part.to(device) for name, part in parts.items() if isinstance(part, torch.Tensor)})
    (q, kv), (wanted, wanted_kv) = there.run(write_kv), drawn.run(reference_write_kv)
    tolerance = test_write_kv.TOLERANCE[dtype]
    close(q, wanted, tolerance)
    torch.testing.assert_close(kv.cpu(), wanted_kv, atol=tolerance, rtol=tolerance, equal_nan=True)


def check_write_fp8(device, *, heads, kv_heads, dim, dtype, length=75):
    """A prompt in two chunks, then a token, in blocks whose scales grow; padding rows beside them."""
    rng = torch.Generator().manual_seed(2)
    table = random.Random(2).sample(range(9), -(-length // 32))
    qkv = (
        torch.randn(length, (heads + 2 * kv_heads) * dim, generator=rng) * torch.linspace(0.1, 9, length)[:, None]
    ).to(dtype)
    angles = torch.randn(length, dim // 2, generator=rng) * 9
    k_norm = torch.rand(dim, generator=rng) + 0.5
    slots = torch.tensor([table[at // 32] * 32 + at % 32 for at in range(length)])
    slots[5] = -1
    found = []
    for function, where in ((write_kv, torch.device(device)), (reference_write_kv, torch.device("cpu"))):
        codes = torch.full((9, 2, kv_heads, 32, dim), 0x7F, dtype=torch.uint8).to(where)
        scales = torch.full((9, 2, kv_heads), float("nan"), device=where)
        queries = []
        for start, stop in ((0, 40), (40, length - 1), (length - 1, length)):
            positions = torch.arange(start, stop)
            arguments = (qkv[start:stop], positions, slots[start:stop], angles.cos(), angles.sin(), k_norm)
            rows, at, to, cos, sin, norm = (part.to(where) for part in arguments)
            queries.append(
                function(rows, codes.view(FP8), at, to, cos, sin, heads=heads, kv_heads=kv_heads,
                         q_norm=norm, k_norm=norm, scales=scales).cpu()
            )  # fmt: skip
        found.append((torch.cat(queries), codes.cpu().view(FP8).float() * scales.cpu()[..., None, None], scales.cpu()))
    (q, values, scales), (wanted, wanted_values, wanted_scales) = found
    close(q, wanted, test_write_kv.TOLERANCE[dtype])
    torch.testing.assert_close(scales, wanted_scales, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(values, wanted_values, atol=1e-3, rtol=2**-3, equal_nan=True)
    other = (values != wanted_values) & ~wanted_values.isnan()
    assert int(other.sum()) <= 4 + values.numel() // 1000  # a last bit of fp32 may turn a rounding


def check_logprobs(device, *, rows, vocab, top, dtype):
    rng = torch.Generator().manual_seed(vocab)
    logits = (3 * torch.randn(rows, vocab, generator=rng)).to(dtype)
    tokens = torch.randint(0, vocab, (rows,), generator=rng)
    logprobs, ranks, ids, values = (part.cpu() for part in token_logprobs(logits.to(device), tokens.to(device), top))
    wanted, wanted_ranks, wanted_ids, wanted_values = reference_token_logprobs(logits, tokens, top)
    close(logprobs, wanted, 2e-5)
    assert torch.equal(ranks, wanted_ranks)
    assert torch.equal(ids, wanted_ids)
    close(values, wanted_values, 2e-5)
