"""Scratch from one piece of memory."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.gpu.workspace import ALIGNMENT, Workspace, covering_bytes, scratch

CPU = torch.device("cpu")
SHAPES = st.lists(st.integers(0, 9), min_size=1, max_size=3)
PARTS = st.lists(
    st.tuples(SHAPES, st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.int64])), max_size=5
)


@given(PARTS)
def test_what_is_taken_together_is_aligned_and_does_not_overlap(parts):
    workspace = Workspace(covering_bytes(*parts), CPU)
    taken = workspace.take(*parts)
    for number, part in enumerate(taken, 1):
        part.fill_(number)
    for number, (part, (shape, dtype)) in enumerate(zip(taken, parts, strict=True), 1):
        assert (list(part.shape), part.dtype) == (shape, dtype)
        assert (part == number).all()
        assert (part.data_ptr() - workspace.memory.data_ptr()) % ALIGNMENT == 0 or not part.numel()


def test_without_a_workspace_tensors_are_new():
    one, other = scratch(None, CPU, ((2, 3), torch.float32), ((4,), torch.int32))
    assert (one.shape, other.shape, other.dtype) == ((2, 3), (4,), torch.int32)
