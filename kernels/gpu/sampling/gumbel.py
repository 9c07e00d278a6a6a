"""Gumbel noise: one random number for each token of a vocabulary, from a counter alone.

The Gumbel-max trick: add independent Gumbel noise to every token's log-weight; the largest sum belongs to token i with
probability w_i / sum(w) (Gumbel 1954; Maddison et al. 2014, "A* sampling", section 2). The noise is -log(E), E a unit
exponential, so this is the smallest of independent exponentials E_i / w_i (Devroye 1986, "Non-Uniform Random Variate
Generation", chapter V). It needs no sum and no sort, and cutting tokens away leaves the noise of the others as it was.

Random words come from Philox 4x32 with 7 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": the fewest
rounds that pass all of BigCrush): key = the request's 64-bit seed, counter = (token // 4, position, 0, 0), word token % 4. So a
token's noise depends on seed, position and token, and on nothing else: not on the batch, the row or the tile.

A word r becomes v = (r + 1/2) / 2^32 and E = -log(1 - v), near zero by its series: the winner's E is about 1 / vocabulary,
where 1 - v would have lost most of its digits. v is never zero: no token, however unlikely, wins by rounding.

Cost: about 25 integer multiplications per token (4 tokens share a call) and 1 logarithm more than reading its logit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROUNDS = tl.constexpr(7)
SMALL = tl.constexpr(1 / 32)  # below it the series is used, whose remainder is then under 1e-8 of its value


@triton.jit
def _gumbel_of_words(words):
    """Gumbel noise from random words."""
    v = words.to(tl.float32) * 2.0**-32 + 2.0**-33
    v = tl.minimum(v, 1.0 - 2.0**-24)  # the largest words round up to one
    series = v * (1.0 + v * (1.0 / 2 + v * (1.0 / 3 + v * (1.0 / 4 + v * (1.0 / 5)))))
    return -tl.log(tl.where(v < SMALL, series, -tl.log(1.0 - v)))


@triton.jit
def tile_gumbel(seed, position, start, BLOCK: tl.constexpr):
    """The noise of tokens `start` .. `start + BLOCK` - 1, with `start` a multiple of 4: fp32 [BLOCK]."""
    counter = start // 4 + tl.arange(0, BLOCK // 4)
    zero = counter * 0
    a, b, c, d = tl.philox(seed, counter, zero + position, zero, zero, ROUNDS)
    return _gumbel_of_words(tl.interleave(tl.interleave(a, c), tl.interleave(b, d)))


@triton.jit
def gumbel(seed, position, tokens):
    """The noise of any `tokens`, int32 [n]: fp32 [n]."""
    counter = tokens // 4
    zero = counter * 0
    a, b, c, d = tl.philox(seed, counter, zero + position, zero, zero, ROUNDS)
    word = tokens % 4
    return _gumbel_of_words(tl.where(word == 0, a, tl.where(word == 1, b, tl.where(word == 2, c, d))))


def reference_words(seed: int, counters: Tensor) -> Tensor:
    """Philox 4x32-7 by definition (Salmon et al. 2011, section 3.3).

    `counters` int64 [n, 4] hold 32-bit values; returns the words, int64 [n, 4].
    """
    low = 0xFFFFFFFF
    a, b, c, d = counters.unbind(1)
    key, other_key = seed & low, (seed >> 32) & low
    for _ in range(ROUNDS.value):
        (high_a, low_a), (high_c, low_c) = _product(0xD2511F53, a), _product(0xCD9E8D57, c)
        a, b, c, d = high_c ^ b ^ key, low_c, high_a ^ d ^ other_key, low_a
        key, other_key = (key + 0x9E3779B9) & low, (other_key + 0xBB67AE85) & low
    return torch.stack([a, b, c, d], dim=1)


def _product(factor: int, values: Tensor) -> tuple[Tensor, Tensor]:
    """(high, low) 32 bits of 32-bit products, by halves: int64 has no room for 64 unsigned bits."""
    upper, lower = factor * (values >> 16), factor * (values & 0xFFFF)
    return (upper + (lower >> 16)) >> 16, (((upper & 0xFFFF) << 16) + lower) & 0xFFFFFFFF


def reference_gumbel(seed: int, position: int, vocab: int) -> Tensor:
    """The noise of every token: fp64 [vocab]."""
    counters = torch.zeros(-(-vocab // 4), 4, dtype=torch.int64)
    counters[:, 0] = torch.arange(len(counters))
    counters[:, 1] = position
    words = reference_words(seed, counters).flatten()[:vocab]
    return -torch.log(-torch.log1p(-((words.double() + 0.5) / 2**32)))
