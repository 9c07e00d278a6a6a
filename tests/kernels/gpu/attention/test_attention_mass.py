"""Attention mass against its definition, after both attention kernels."""

import pytest
import torch

from kernels.gpu.attention import attention_mass as module
from kernels.gpu.attention.attention_mass import PART, attention_mass
from kernels.gpu.attention.decode import decode_attention
from kernels.gpu.attention.paged import paged_attention
from kernels.gpu.attention.reference import reference_attention
from tests.kernels.gpu.attention.cases import NAN, Case, assert_close, compiles

RAGGED = [(5, 18), (1, 133), (0, 40), (70, PART + 1), (3, 3)]
OPTIONS = [{}, {"window": 30}, {"soft_cap": 2.0}, {"window": 7, "soft_cap": 50.0}]


def wanted(case, positions, **options):
    found = reference_attention(*case.shared(), scale=0.3, scales=case.scales, **options)
    mass = torch.zeros(len(case.lengths), case.heads[1], positions)
    shared = min(positions, found.mass.shape[2])
    mass[:, :, :shared] = found.mass[:, :, :shared]
    return found.out, mass


def poisoned(case, positions):
    return torch.full((len(case.lengths), case.heads[1], positions), NAN)


def check_paged(case, positions, **options):
    mass = poisoned(case, positions)
    out = paged_attention(*case.shared(), scale=0.3, longest=case.longest, scales=case.scales, mass=mass, **options)
    out_wanted, mass_wanted = wanted(case, positions, **options)
    assert_close(out, out_wanted)
    torch.testing.assert_close(mass, mass_wanted, rtol=0, atol=1e-5)
    return mass


def decoded(case, positions, *, window=0, soft_cap=0.0):
    log_sums = torch.empty(case.q.shape[:2])
    decode_attention(case.q, case.kv, case.work(window), scale=0.3, soft_cap=soft_cap, log_sums=log_sums)
    where = (None, case.kv_lengths, case.block_tables, poisoned(case, positions))
    return attention_mass(case.q, log_sums, case.kv, *where, scale=0.3, window=window, soft_cap=soft_cap)


@pytest.mark.parametrize("options", OPTIONS)
def test_of_chunks(options):
    mass = check_paged(Case(RAGGED), PART + 40, **options)
    torch.testing.assert_close(mass.sum(2)[[0, 1, 3, 4]], torch.ones(4, 2))
    assert (mass[2] == 0).all()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lengths", [[1, 33, 300], [1, 90]])
def test_of_single_rows(lengths, options):
    """Split over keys, and in one part."""
    case = Case([(1, keys) for keys in lengths], heads=(5, 1))
    mass = decoded(case, 310, **options)
    torch.testing.assert_close(mass, wanted(case, 310, **options)[1], rtol=0, atol=1e-5)


def test_a_padding_row_has_no_mass():
    case = Case([(1, 9), (1, 0)])
    mass = decoded(case, 9)
    torch.testing.assert_close(mass[0].sum(1), torch.ones(2))
    assert (mass[1] == 0).all()


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (3, 1)])
def test_heads(heads):
    check_paged(Case(RAGGED[:3], heads=heads, block_size=32), 140)


def test_fewer_positions_than_keys():
    check_paged(Case(RAGGED), 20)


def test_fp8_pool():
    check_paged(Case(RAGGED[:3], dim=24, fp8=True), 140)


def test_into_a_wider_place():
    case, wide = Case(RAGGED[:2]), torch.full((2, 2, 500), NAN)
    paged_attention(*case.shared(), scale=0.3, longest=5, mass=wide[:, :, 100:240])
    torch.testing.assert_close(wide[:, :, 100:240], wanted(case, 140)[1], rtol=0, atol=1e-5)
    assert wide[:, :, :100].isnan().all() and wide[:, :, 240:].isnan().all()


def test_a_place_of_the_wrong_shape_is_refused():
    case = Case(RAGGED[:2])
    q, *rest = case.shared()
    with pytest.raises(ValueError, match=r"fp32 \[2, 2, positions\]"):
        attention_mass(q, torch.zeros(6, 4), *rest, torch.zeros(2, 4, 18), scale=1.0)


def test_a_variant_compiles():
    assert compiles(module, "llama-8b bf16", 90)
