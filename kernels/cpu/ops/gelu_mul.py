"""The gated activation of the MLP with GELU in place of SiLU, GEGLU (Shazeer 2020, arXiv 2002.05202), on the fused gate/up
projection. GELU itself is Hendrycks and Gimpel 2016, arXiv 1606.08415. The floor is that of `silu_mul`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gelu_mul(gate_up: Tensor) -> Tensor:
    """`gelu(gate) * up`, by the error function.

    Args:
        gate_up: fp32 [tokens, 2 * n], gate first.

    Returns:
        fp32 [tokens, n], newly allocated.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate).mul_(up)


def gelu_tanh_mul(gate_up: Tensor) -> Tensor:
    """`gelu_mul` with GELU's approximation by tanh (section 2 of the paper)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)


def gelu_mul_reference(gate_up: Tensor) -> Tensor:
    """The definition, in fp64. Same shapes as `gelu_mul`; returns fp32."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    return (gate * (1 + torch.erf(gate / math.sqrt(2))) / 2 * up).float()


def gelu_tanh_mul_reference(gate_up: Tensor) -> Tensor:
    """The definition, in fp64. Same shapes as `gelu_tanh_mul`; returns fp32."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    return (gate * (1 + torch.tanh(inner)) / 2 * up).float()
