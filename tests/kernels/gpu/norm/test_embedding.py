"""The gather against torch's."""

import pytest
import torch

from kernels.gpu.norm.embedding import embed, reference_embed


def table_of(vocabulary, hidden, dtype=torch.float32):
    return torch.randn(vocabulary, hidden, generator=torch.Generator().manual_seed(hidden)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("hidden", [1, 64, 576, 1023, 1024, 1025])
def test_rows_are_copied_bit_for_bit(dtype, hidden):
    table = table_of(11, hidden, dtype)
    ids = torch.tensor([10, 0, 3, 3, 7])
    assert torch.equal(embed(table, ids), table[ids])


@pytest.mark.parametrize("first", [0, 1, 20, 25])
def test_a_part_of_the_vocabulary(first):
    """Ids of other devices' parts give zeros, so that the sum over the parts is the whole table's result."""
    table, ids = table_of(40, 24), torch.tensor([0, 1, 19, 20, 25, 39, 5])
    parts = [(0, first), (first, len(table))]
    found = [embed(table[start:stop], ids, first=start) for start, stop in parts if stop > start]
    for (start, stop), rows in zip([part for part in parts if part[1] > part[0]], found, strict=True):
        assert torch.equal(rows, reference_embed(table[start:stop], ids, first=start))
    assert torch.equal(sum(found), table[ids])


def test_ids_of_no_row_are_zeros():
    """A padding row of a captured graph may hold any id."""
    ids = torch.tensor([-1, 5, 2**40, 4])
    table = table_of(5, 8)
    assert torch.equal(embed(table, ids), reference_embed(table, ids))
    assert torch.equal(embed(table, ids)[3], table[4])


def test_a_table_with_a_row_stride_and_no_ids():
    wide = table_of(6, 30)
    ids = torch.tensor([5, 1])
    assert torch.equal(embed(wide[:, :20], ids), wide[ids, :20])
    assert embed(wide, ids[:0]).shape == (0, 30)


@pytest.mark.parametrize("ids", [torch.zeros(2, dtype=torch.int32), torch.zeros(2, 2, dtype=torch.int64)])
def test_ids_of_another_form_are_refused(ids):
    with pytest.raises(ValueError, match="int64"):
        embed(table_of(4, 8), ids)
