"""Scratch that calls of kernels share because they run one after another: one piece of memory, made once.

A CUDA graph keeps every address that it was recorded with. With partial results in tensors of their own, each recorded shape would
hold some more for as long as it is there, and so would the steps without a graph.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

ALIGNMENT = 256  # bytes, as of torch's own tensors

Part = tuple[Sequence[int], torch.dtype]  # a tensor's shape and type


def covering_bytes(*parts: Part) -> int:
    """Bytes of a workspace from which these tensors can be taken together."""
    return sum(_padded(part) for part in parts)


class Workspace:
    """Memory from which each call takes what it needs, from the beginning.

    What was taken holds nothing known, and is valid until the next call's kernels: all of them run on one stream, or on streams
    that wait for each other.

    Args:
        nbytes: its size, for the largest call (`covering_bytes`).
        device: where it is.
    """

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.memory = torch.empty(nbytes, dtype=torch.uint8, device=device)

    def take(self, *parts: Part) -> list[Tensor]:
        """Tensors of these shapes and types, beside each other.

        Raises:
            ValueError: it is too small.
        """
        wanted = covering_bytes(*parts)
        if wanted > len(self.memory):
            raise ValueError(f"a call needs {wanted} bytes of a workspace that has {len(self.memory)}")
        taken, start = [], 0
        for part in parts:
            shape, dtype = part
            taken.append(self.memory[start : start + prod(shape) * dtype.itemsize].view(dtype).view(*shape))
            start += _padded(part)
        return taken


def scratch(workspace: Workspace | None, device: torch.device, *parts: Part) -> list[Tensor]:
    """Tensors from a workspace, or new ones where there is none."""
    if workspace is not None:
        return workspace.take(*parts)
    return [torch.empty(*shape, dtype=dtype, device=device) for shape, dtype in parts]


def _padded(part: Part) -> int:
    shape, dtype = part
    return -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
