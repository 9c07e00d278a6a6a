"""The random draw: one uniform number for each token position, and inversion of the distribution function.

Reproducible by construction: the number depends on nothing but the request's seed and the position of the token in
its sequence, so that the same seed gives the same text alone, in any batch, after preemption and after a restart. It
comes from a keyed hash in counter mode (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section
3), BLAKE2b, which takes seeds of any size and sign.

Inversion (Devroye 1986, "Non-Uniform Random Variate Generation", section III.2.1) takes the first token, in the order
of ids, whose cumulative weight exceeds u * total. The Gumbel-max trick needs a random number for every token of the
vocabulary; inversion needs one, and in double precision its tail is exact to 1e-16. Tokens without weight add exactly
zero to the sum: the outcome is the same whether they are present or have been cut away, as long as the candidates are
in the order of their ids.
"""

import hashlib

import torch
from torch import Tensor


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), a multiple of 2**-53, for token `position` of a sequence with `seed` (any integer)."""
    digest = hashlib.blake2b(f"{seed:x}/{position:x}".encode(), digest_size=8, person=b"headrace").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Column drawn in each row, int64 [rows].

    `weights` [rows, n] fp32: not negative, need not add up to one, at least one above zero in each row. `uniforms` [rows]
    fp64 in [0, 1). A column of weight zero is never drawn: u * total < total holds in rounded double arithmetic too,
    because u <= 1 - 2**-53, and the first sum above the target is one that its own weight has raised.
    """
    sums = weights.cumsum(dim=-1, dtype=torch.float64)
    targets = uniforms.unsqueeze(1) * sums[:, -1:]
    return torch.searchsorted(sums, targets, right=True).squeeze(1)
