"""Prefix-grouped decode against attention of each sequence to all its keys."""

import random

import pytest
import torch

from kernels.gpu.attention.cascade import cascade_attention, reference_cascade_attention
from kernels.gpu.attention.cascade_groups import CascadeBatch, find_groups
from kernels.gpu.attention.decode_work import plan_decode
from tests.kernels.gpu.attention.cases import NAN, assert_close


class Shared:
    """A decode batch of (members, keys in common) groups over a poisoned pool with shuffled blocks."""

    def __init__(self, prefixes, *, heads=(4, 2), dim=16, block_size=16, dtype=torch.float32, fp8=False, seed=0):
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.block_size, self.heads, self.device = block_size, heads, torch.device("cpu")
        self.lengths, shared = [], []
        for members, keys in prefixes:
            for _ in range(members):
                shared.append(keys // block_size)
                self.lengths.append(keys // block_size * block_size + rng.randint(1, 3 * block_size))
        blocks = 400
        ids = rng.sample(range(blocks), blocks)
        layers = torch.full((blocks, 2, 2, heads[1], block_size, dim), NAN)
        kv = layers[:, 1]
        self.tables, row = [], 0
        for members, _ in prefixes:
            common = [ids.pop() for _ in range(shared[row])]
            for length in self.lengths[row : row + members]:
                self.tables.append([*common, *(ids.pop() for _ in range(-(-length // block_size) - len(common)))])
            row += members
        for table, length in zip(self.tables, self.lengths, strict=True):
            for entry, block in enumerate(table):
                tokens = min(block_size, length - entry * block_size)
                kv[block, :, :, :tokens] = torch.randn(2, heads[1], tokens, dim, generator=generator)
        self.scales = None
        if fp8:
            self.scales = torch.rand(blocks, 2, 2, heads[1], generator=generator)[:, 1] * 0.05 + 0.01
            layers[:, 1] /= self.scales[..., None, None]
        self.kv = layers.to(torch.float8_e4m3fn if fp8 else dtype)[:, 1]
        self.q = torch.randn(len(self.lengths), heads[0], dim, generator=generator).to(dtype)

    def cascade(self, **options):
        groups = find_groups(self.tables, self.lengths, self.block_size, 1, 0)
        batch = CascadeBatch.build(
            groups,
            self.tables,
            self.lengths,
            block_size=self.block_size,
            heads=self.heads[0],
            kv_heads=self.heads[1],
            device=self.device,
        )
        out = torch.full_like(self.q, NAN)
        rests = (batch.lengths, batch.table_starts, batch.tables)
        work = plan_decode(*rests, kv_heads=self.heads[1], longest_kv=batch.longest_kv)
        result = cascade_attention(self.q, self.kv, batch, work, scale=0.3, scales=self.scales, out=out, **options)
        assert result is out
        return out

    def reference(self, **options):
        width = max(map(len, self.tables))
        tables = torch.tensor([[*table, *[0] * (width - len(table))] for table in self.tables], dtype=torch.int32)
        lengths = torch.tensor(self.lengths, dtype=torch.int32)
        return reference_cascade_attention(self.q, self.kv, lengths, tables, scale=0.3, scales=self.scales, **options)


@pytest.mark.parametrize(
    "prefixes",
    [
        [(2, 16)],
        [(3, 48), (2, 0)],
        [(1, 0), (2, 160), (1, 0), (4, 32), (3, 0)],
        [(2, 1100), (2, 64)],  # a long prefix is cut, a short one beside it is not
        [(9, 33)],
    ],
    ids=str,
)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (8, 1)])
def test_definition(prefixes, heads):
    case = Shared(prefixes, heads=heads, seed=len(prefixes))
    assert_close(case.cascade(), case.reference())


@pytest.mark.parametrize(
    "options", [{"block_size": 32}, {"dim": 64, "heads": (9, 3)}, {"dtype": torch.float16}, {"fp8": True}], ids=str
)
def test_shapes_and_types(options):
    case = Shared([(1, 0), (3, 96), (2, 560)], seed=7, **options)
    assert_close(case.cascade(), case.reference())


def test_soft_cap():
    case = Shared([(3, 96), (1, 0)], seed=8)
    case.q *= 20
    assert_close(case.cascade(soft_cap=5.0), case.reference(soft_cap=5.0))


def test_more_rows_than_a_tile_holds():
    """Eight query heads per KV head: 4 rows of fp32 fill a tile, so 11 members take three."""
    case = Shared([(11, 32)], heads=(8, 1), seed=9)
    assert_close(case.cascade(), case.reference())


def test_another_batchs_plan_is_refused():
    case, other = Shared([(2, 16)]), Shared([(3, 16)])
    case.q = other.q
    with pytest.raises(ValueError, match="3 queries for a batch of 2 sequences"):
        case.cascade()
