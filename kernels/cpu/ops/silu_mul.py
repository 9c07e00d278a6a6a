"""The gated activation of the MLP, SwiGLU (Shazeer 2020, arXiv 2002.05202), on the fused gate/up projection.

Floor at one row of 2 x 1,536: 18 kB of traffic, about 1 µs; measured 4 µs. 512 rows: 9.4 MB, 0.6 ms at 15 GB/s.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up`.

    Args:
        gate_up: fp32 [tokens, 2 * n], gate first.

    Returns:
        fp32 [tokens, n], newly allocated.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def silu_mul_reference(gate_up: Tensor) -> Tensor:
    """The definition, in fp64. Same shapes as `silu_mul`; returns fp32."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    return (gate / (1 + torch.exp(-gate)) * up).float()
