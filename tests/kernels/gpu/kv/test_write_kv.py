"""Norm, rotation and scatter against their definition; everything that must not be touched is NaN."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from kernels.gpu.kv.write_kv import reference_write_kv, write_kv

TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2**-7}


@dataclass(frozen=True)
class Case:
    """Arguments of one call, and how many blocks the pool has."""

    qkv: Tensor
    kv: Tensor
    positions: Tensor
    slots: Tensor
    cos: Tensor
    sin: Tensor
    heads: int
    kv_heads: int
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None

    def run(self, function):
        """(queries, the pool afterwards)."""
        kv = self.kv.clone()
        arguments = [self.qkv, kv, self.positions, self.slots, self.cos, self.sin]
        named = {"heads": self.heads, "kv_heads": self.kv_heads, "q_norm": self.q_norm, "k_norm": self.k_norm}
        return function(*arguments, **named, eps=1e-5), kv


def case(seed, heads=4, kv_heads=2, dim=16, block_size=16, rows=5, dtype=torch.float32, norms=False, context=70):
    generator = torch.Generator().manual_seed(seed)
    blocks = 2 + -(-rows // block_size)
    kv = torch.full((blocks, 3, 2, kv_heads, block_size, dim), float("nan"), dtype=dtype)[:, 1]
    angles = torch.randn(context, dim // 2, generator=generator) * 20
    q_norm, k_norm = (torch.randn(dim, generator=generator) if norms else None for _ in range(2))
    return Case(
        qkv=(torch.randn(rows, (heads + 2 * kv_heads) * dim, generator=generator) * 3).to(dtype),
        kv=kv,
        positions=torch.randint(0, context, (rows,), generator=generator),
        slots=torch.randperm(blocks * block_size, generator=generator)[:rows],
        cos=angles.cos(),
        sin=angles.sin(),
        heads=heads,
        kv_heads=kv_heads,
        q_norm=q_norm,
        k_norm=k_norm,
    )


def agree(drawn):
    (q, kv), (expected_q, expected_kv) = drawn.run(write_kv), drawn.run(reference_write_kv)
    tolerance = TOLERANCE[q.dtype]
    torch.testing.assert_close(q, expected_q, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(kv, expected_kv, atol=tolerance, rtol=tolerance, equal_nan=True)
    return kv


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("dim", [2, 40, 64, 80, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 2), (5, 1), (9, 3), (1, 1), (24, 12)])
def test_shapes_of_heads(heads, kv_heads, dim, norms):
    agree(case(dim + heads, heads, kv_heads, dim, norms=norms))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("rows", [1, 2, 17])
def test_types_blocks_and_rows(dtype, norms, block_size, rows):
    agree(case(rows, rows=rows, block_size=block_size, dtype=dtype, norms=norms))


def test_values_are_stored_as_they_are():
    drawn = case(1, heads=2, kv_heads=2, dim=8, rows=1)
    kv = agree(drawn)
    block, offset = divmod(int(drawn.slots[0]), 16)
    assert torch.equal(kv[block, 1, :, offset].flatten(), drawn.qkv[0, 32:])


def test_position_zero_is_no_turn():
    """Angle 0 at position 0: keys and queries as they came."""
    drawn = case(2, heads=3, kv_heads=1, dim=8, rows=2)
    cos, sin = drawn.cos.clone(), drawn.sin.clone()
    cos[0], sin[0] = 1.0, 0.0
    drawn = replace(drawn, cos=cos, sin=sin, positions=torch.zeros(2, dtype=torch.int64))
    assert torch.equal(drawn.run(write_kv)[0].flatten(1), drawn.qkv[:, :24])


@pytest.mark.parametrize("norms", [False, True])
def test_slot_minus_one_writes_nothing(norms):
    """Padding rows of a captured graph, between rows that count."""
    drawn = case(3, rows=6, norms=norms)
    slots = drawn.slots.clone()
    slots[[0, 2, 5]] = -1
    kv = agree(replace(drawn, slots=slots))
    assert int((~kv.isnan()).sum()) == 3 * 2 * 2 * 16
    assert replace(drawn, slots=torch.full_like(slots, -1)).run(write_kv)[1].isnan().all()


def test_a_row_does_not_depend_on_the_others():
    drawn = case(4, rows=7, norms=True)
    q, kv = drawn.run(write_kv)
    for row in range(7):
        part = slice(row, row + 1)
        alone = replace(drawn, qkv=drawn.qkv[part], positions=drawn.positions[part], slots=drawn.slots[part])
        q_alone, kv_alone = alone.run(write_kv)
        block, offset = divmod(int(drawn.slots[row]), 16)
        assert torch.equal(q_alone[0], q[row])
        assert torch.equal(kv_alone[block, :, :, offset], kv[block, :, :, offset])


def test_rows_with_a_stride_and_norms_of_the_models_type():
    drawn = case(5, dtype=torch.float16, norms=True)
    wide = torch.cat((drawn.qkv, torch.full_like(drawn.qkv, float("nan"))), 1)[:, : drawn.qkv.shape[1]]
    agree(replace(drawn, qkv=wide, q_norm=drawn.q_norm.half(), k_norm=drawn.k_norm.half()))


def test_blocks_beyond_2_to_31_values():
    """The pool is a view whose blocks lie 2^29 values apart, in pages of which only two are ever touched."""
    stride = 2**29
    drawn = case(6, heads=2, kv_heads=1, dim=16, rows=2, dtype=torch.float16)
    storage = torch.empty(4 * stride + 512, dtype=torch.float16)  # reserved, not resident
    far = storage.as_strided((5, 2, 1, 16, 16), (stride, 256, 256, 16, 1))
    slots = torch.tensor([4 * 16 + 3, 3 * 16])
    arguments = [drawn.positions, slots, drawn.cos, drawn.sin]
    write_kv(drawn.qkv, far, *arguments, heads=2, kv_heads=1)
    near = torch.zeros(5, 2, 1, 16, 16, dtype=torch.float16)
    reference_write_kv(drawn.qkv, near, *arguments, heads=2, kv_heads=1)
    for block, offset in ((4, 3), (3, 0)):
        torch.testing.assert_close(far[block, :, :, offset], near[block, :, :, offset], atol=2e-3, rtol=2e-3)


def test_no_rows():
    drawn = case(7)
    none = replace(drawn, qkv=drawn.qkv[:0], positions=drawn.positions[:0], slots=drawn.slots[:0])
    q, kv = none.run(write_kv)
    assert q.shape == (0, 4, 16) and kv.isnan().all()


@pytest.mark.parametrize(
    "change",
    [
        {"heads": 3},
        {"kv_heads": 1},
        {"positions": torch.zeros(5, dtype=torch.int32)},
        {"slots": torch.zeros(4, dtype=torch.int64)},
        {"cos": torch.zeros(70, 4)},
        {"sin": torch.zeros(70, 8, dtype=torch.float16)},
        {"q_norm": torch.zeros(16)},
        {"q_norm": torch.zeros(15), "k_norm": torch.zeros(15)},
    ],
)
def test_what_does_not_belong_together_is_refused(change):
    with pytest.raises(ValueError, match="must"):
        replace(case(8), **change).run(write_kv)
