"""Paged attention against its definition, by Triton's interpreter."""

import mmap
from types import SimpleNamespace

import pytest
import torch

from kernels.gpu.attention import launch
from kernels.gpu.attention import paged as module
from kernels.gpu.attention.launch import Config
from kernels.gpu.attention.paged import config_for, paged_attention
from kernels.gpu.attention.reference import reference_attention
from tests.kernels.gpu.attention.cases import NO_RESERVE, Case, assert_close, compiles

# (rows, keys): whole prompts, chunks after cached keys, single tokens, no rows, and both edges of the tiles.
MIXED = [(1, 1), (33, 33), (1, 133), (5, 18), (0, 40), (17, 80), (65, 129), (1, 64), (12, 12)]


def attend(case, **options):
    out, log_sums = case.poisoned(), torch.full(case.q.shape[:2], float("nan"))
    found = paged_attention(
        *case.shared(), scale=0.3, longest=case.longest, scales=case.scales, log_sums=log_sums, out=out, **options
    )
    assert found is out
    return out, log_sums


def check(case, **options):
    out, log_sums = attend(case, **options)
    wanted = reference_attention(*case.shared(), scale=0.3, scales=case.scales, **options)
    assert_close(out, wanted.out)
    torch.testing.assert_close(log_sums, wanted.log_sums, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("heads", "block_size"), [((4, 4), 16), ((8, 2), 32), ((5, 1), 16), ((3, 1), 32), ((8, 1), 32)]
)
def test_heads_and_blocks(heads, block_size):
    check(Case(MIXED, heads=heads, block_size=block_size))


@pytest.mark.parametrize("keys", [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 300, 463, 600])
def test_one_sequence_of_any_length(keys):
    """Its whole prompt up to 129 rows, and its last token alone."""
    check(Case([(min(keys, 129), keys), (1, keys)], heads=(2, 1), seed=keys))


@pytest.mark.parametrize("window", [1, 7, 16, 33, 100, 1000])
def test_windows(window):
    check(Case([(33, 33), (1, 133), (0, 9), (40, 170)], heads=(3, 1)), window=window)


@pytest.mark.parametrize("cap", [0.5, 50.0])
def test_soft_cap(cap):
    check(Case([(33, 33), (1, 133), (5, 18)]), soft_cap=cap, window=20)


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_head_sizes(dim, dtype):
    """With the tiles of a model's own types, which are taller than those of fp32."""
    check(Case([(35, 70), (1, 66), (129, 129)], heads=(2, 1), dim=dim, dtype=dtype), window=50)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_fp8_pool(dtype):
    check(Case([(35, 70), (1, 66), (5, 18)], dim=24, dtype=dtype, fp8=True))


def test_rows_without_causal_order_see_all_keys():
    check(Case([(3, 40), (40, 3), (1, 1), (2, 64)]), causal=False)


def test_a_sequence_without_keys_gives_zeros():
    out, log_sums = attend(Case([(3, 0), (2, 5)]), causal=False)
    assert (out[:3] == 0).all() and (log_sums[:3] == float("-inf")).all()
    assert out[3:].isfinite().all()


def test_a_row_does_not_depend_on_its_company():
    """Bit by bit, alone and in any batch; and however its prompt was cut."""
    batch = Case([(5, 18), (70, 133), (1, 40)], heads=(3, 1))
    together, _ = attend(batch)
    alone = paged_attention(
        batch.q[5:75],
        batch.kv,
        torch.tensor([0, 70], dtype=torch.int32),
        batch.kv_lengths[1:2],
        batch.block_tables[1:2],
        scale=0.3,
        longest=70,
    )
    assert torch.equal(alone, together[5:75])
    cut = paged_attention(
        batch.q[5:75],
        batch.kv,
        torch.tensor([0, 33, 70], dtype=torch.int32),
        torch.tensor([96, 133], dtype=torch.int32),
        batch.block_tables[1:2].expand(2, -1),
        scale=0.3,
        longest=37,
    )
    # On a GPU to the bit (tests/gpu). The interpreter's products are numpy's, whose library takes rows at the edge of a matrix by
    # other code, on some processors with another order of additions.
    torch.testing.assert_close(cut, together[5:75], rtol=0, atol=1e-6)


def test_more_sequences_than_are_counted_at_once():
    check(Case([(int(index % 9 == 0), 3) for index in range(140)], heads=(1, 1)))


def test_rows_of_no_sequence_are_left_alone():
    """Padding rows after the last sequence, a strided query and a strided result."""
    case = Case([(3, 20), (2, 2)])
    wide = torch.randn(9, 4, 48)
    wide[:5, :, 16:32] = case.q
    out = torch.full((9, 4, 32), float("nan"))
    arguments = (case.kv, case.row_starts, case.kv_lengths, case.block_tables)
    paged_attention(wide[:, :, 16:32], *arguments, scale=0.3, longest=9, out=out[:, :, :16])
    assert_close(out[:5, :, :16], reference_attention(*case.shared(), scale=0.3).out)
    assert out[5:].isnan().all() and out[:, :, 16:].isnan().all()


def test_blocks_beyond_2_to_31_elements():
    """Block 2 of a pool whose blocks are 2^30 elements apart; the memory between is mapped but never touched."""
    case, stride = Case([(3, 40)], heads=(2, 1), dtype=torch.float16), 2**30
    with mmap.mmap(-1, (2 * stride + 4096) * 2, flags=mmap.MAP_PRIVATE | NO_RESERVE) as memory:
        far = case.far(memory, stride)
        tables = torch.tensor([[1, 2, 0]], dtype=torch.int32)
        out = paged_attention(case.q, far, case.row_starts, case.kv_lengths, tables, scale=0.3, longest=3)
        del far
    assert_close(out, reference_attention(*case.shared(), scale=0.3).out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv": torch.zeros(3, 2, 3, 16, 16)}, "does not fit"),
        ({"kv": torch.zeros(3, 2, 2, 16, 32)[..., ::2]}, "contiguous"),
        ({"kv": torch.zeros(3, 2, 2, 16, 16).half()}, "must be the same"),
        ({"kv": torch.zeros(3, 2, 2, 16, 16).to(torch.float8_e4m3fn)}, "needs scales"),
        ({"row_starts": torch.zeros(1, dtype=torch.int32)}, "one more"),
        ({"causal": False, "window": 3}, "window of 3"),
    ],
)
def test_what_does_not_belong_together_is_refused(change, message):
    case = Case([(3, 20)])
    named = dict(zip(("q", "kv", "row_starts", "kv_lengths", "block_tables"), case.shared(), strict=True))
    with pytest.raises(ValueError, match=message):
        paged_attention(**(named | {"scale": 1.0, "longest": 3} | change))


def test_a_group_too_large_for_a_tile_is_refused():
    with pytest.raises(ValueError, match="at most 128"):
        config_for(129, 128, 2, 90)


@pytest.mark.parametrize(
    ("capability", "shared", "chip"),
    [(80, 166912, 80), (89, 101376, 80), (90, 232448, 90), (100, 232448, 90), (120, 101376, 80)],
)
def test_a_chip_takes_the_configurations_that_fit_its_shared_memory(capability, shared, chip, monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "capability", lambda device: capability)
    found = SimpleNamespace(shared_memory_per_block_optin=shared)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    assert launch.chip.__wrapped__(torch.device("cuda", 0)) == chip


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_loads_run_ahead_on_hopper(dim, fp8):
    """With fewer stages each iteration waits for its own keys; before Hopper, more would not fit."""
    assert config_for(2, dim, 2, 90, fp8=fp8).stages == 5
    assert config_for(2, dim, 2, 80, fp8=fp8).stages <= 3


def test_another_shape_of_program(monkeypatch):
    case = Case(MIXED, heads=(3, 1))
    monkeypatch.setattr(module, "config_for", None)
    out = paged_attention(*case.shared(), scale=0.3, longest=case.longest, config=Config(64, 32, warps=4, stages=3))
    assert_close(out, reference_attention(*case.shared(), scale=0.3).out)


def test_a_variant_compiles():
    assert compiles(module, "llama-8b bf16", 90)
