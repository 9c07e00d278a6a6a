"""Repetition, presence and frequency penalties, and the counts of each request's tokens that they read.

With l the logit of a token and n its number of occurrences in the output: repetition (Keskar et al. 2019, "CTRL", section 4.1),
for tokens of the prompt and the output, l / r where l > 0, else l * r; then, for tokens of the output,
l - frequency * n - presence. The same as `engine/sampling/penalties.py`.

Counts: one int32 [slots, vocab] for the engine's life, in which a request holds one slot: 2 * n, plus 1 if the token occurs in the
prompt; 131 MB for 256 slots of 128k tokens. The penalized logits are never written: kernels that read logits read them through
`edited`, which adds 4 bytes per token for the count in rows with a penalty and nothing in the others.

`count_tokens` floor: 4 bytes read and written per token, one launch; integer atomics, whose result does not depend on their order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.runtime import Variant

COUNT_BLOCK = 256

# Columns of a row's settings (`kernels.gpu.sampling.sample.BatchSettings`): fp32 ones, and int64 ones.
TEMPERATURE = tl.constexpr(0)
LOG_MIN_P = tl.constexpr(1)
TOP_P = tl.constexpr(2)
REPETITION = tl.constexpr(3)
PRESENCE = tl.constexpr(4)
FREQUENCY = tl.constexpr(5)
FLOATS = tl.constexpr(6)
TOP_K = tl.constexpr(0)
SEED = tl.constexpr(1)
POSITION = tl.constexpr(2)
SLOT = tl.constexpr(3)
INTS = tl.constexpr(4)


@triton.jit
def edited(logits, counts, floats, ints, row, tokens, row_stride, vocab, PENALIZE: tl.constexpr):
    """Logits of `tokens` of `row` after penalties, fp32; -inf beyond the vocabulary. `row` is int64."""
    inside = tokens < vocab
    x = tl.load(logits + row * row_stride + tokens, inside, float("-inf")).to(tl.float32)
    if PENALIZE:
        repetition = tl.load(floats + row * FLOATS + REPETITION)
        presence = tl.load(floats + row * FLOATS + PRESENCE)
        frequency = tl.load(floats + row * FLOATS + FREQUENCY)
        if (repetition != 1.0) | (presence != 0.0) | (frequency != 0.0):
            slot = tl.load(ints + row * INTS + SLOT)
            seen = tl.load(counts + slot * vocab + tokens, inside, 0)
            repeated = tl.where(x > 0, x / repetition, x * repetition)
            x = tl.where(seen > 0, repeated, x)
            out = (seen >> 1).to(tl.float32)
            x = x - frequency * out - tl.where(out > 0, presence, 0.0)
    return x


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["slots", "tokens"])
def _count(counts, slots, tokens, n, vocab, OUTPUT: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slots + index, index < n, -1)
    token = tl.load(tokens + index, index < n, -1)
    real = (slot >= 0) & (token >= 0) & (token < vocab)
    place = counts + slot * vocab + token
    if OUTPUT:
        tl.atomic_add(place, 2, real)
    else:
        tl.atomic_or(place, 1, real)


def count_tokens(counts: Tensor, slots: Tensor, tokens: Tensor, *, output: bool) -> None:
    """Count `tokens` int64 [n] in `slots` int64 [n] of `counts` int32 [slots, vocab], in place, without a host sync.

    A negative slot (padding) or token (an error code of `sample`) counts nothing. `output`: whether the tokens are part of the
    output rather than of the prompt. `counts[slot].zero_()` clears a slot for its next request.
    """
    n = len(tokens)
    if n:
        _count[(triton.cdiv(n, COUNT_BLOCK),)](
            counts, slots, tokens, n, counts.shape[1], OUTPUT=output, BLOCK=COUNT_BLOCK, num_warps=4
        )


def reference_count_tokens(counts: Tensor, slots: Tensor, tokens: Tensor, *, output: bool) -> None:
    """What `count_tokens` does, one token at a time."""
    for slot, token in zip(slots.tolist(), tokens.tolist(), strict=True):
        if slot >= 0 and 0 <= token < counts.shape[1]:
            counts[slot, token] = counts[slot, token] + 2 if output else counts[slot, token] | 1


def reference_penalized(logits: Tensor, counts: Tensor, repetition: float, presence: float, frequency: float) -> Tensor:
    """One row with penalties: from `logits` [vocab] and its slot of counts [vocab] to fp32 [vocab]."""
    x, out = logits.float(), counts >> 1
    x = torch.where(counts > 0, torch.where(x > 0, x / repetition, x * repetition), x)
    return x - frequency * out - presence * (out > 0)


VARIANTS = tuple(
    Variant(
        name=f"count {what}",
        kernel=_count,
        signature={"counts": "*i32", "slots": "*i64", "tokens": "*i64", "n": "i32", "vocab": "i32"},
        constants={"OUTPUT": what == "output", "BLOCK": COUNT_BLOCK},
        warps=4,
        aligned=("counts", "slots", "tokens"),
    )
    for what in ("output", "prompt")
)
