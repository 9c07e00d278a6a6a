"""Bit masks on the device against the reference, in interpreted Triton."""

import pytest
import torch

from kernels.gpu.sampling.bitmask import apply_bitmask, reference_apply_bitmask


@pytest.mark.parametrize("vocab", [31, 320, 2500])
def test_rows_with_a_mask_keep_what_its_bits_allow_and_others_stay(vocab):
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(5, vocab, generator=generator)
    logits[3, 7] = float("nan")
    words = vocab // 32 + 2  # one more than is needed
    masks = torch.randint(-(2**31), 2**31, (3, words), generator=generator).to(torch.int32)
    masks[1], masks[2] = 0, -1
    rows = torch.tensor([3, 1, 4])
    expected = logits.clone()
    reference_apply_bitmask(expected, rows, masks)
    found = logits.clone()
    apply_bitmask(found, rows, masks)
    assert torch.equal(found.nan_to_num(9e9), expected.nan_to_num(9e9)) and found[3].isnan()[7]
    assert torch.equal(found[[0, 2, 4]], logits[[0, 2, 4]])
    assert found[1].isneginf().all()
