"""Soft caps of scores and logits (Bello et al. 2016, arXiv 1611.09940, section 3.3; Gemma 2, arXiv 2408.00118, section 2).

Floor: what is capped read and written once; the tanh of one fp32 costs about as much as reading it from memory.
"""

from torch import Tensor


def soft_cap_(x: Tensor, cap: float) -> Tensor:
    """`cap * tanh(x / cap)` in place; returns x."""
    return x.div_(cap).tanh_().mul_(cap)


def soft_cap_reference(x: Tensor, cap: float) -> Tensor:
    """The definition, in fp64. Returns fp32 of x's shape."""
    return (cap * (x.double() / cap).tanh()).float()
