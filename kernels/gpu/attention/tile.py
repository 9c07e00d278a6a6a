"""The inner loop that the attention kernels here share: one tile of query rows over a range of one sequence's keys in paged blocks.

Online softmax after FlashAttention-2 (Dao 2023, arXiv 2307.08691, section 3.1): for each tile of keys, the running maximum `top`
and sum `total` of the scores are updated and the unnormalised output `acc` is rescaled; the division comes once, at the end.
All scores are in units of log2, because exp2 is the instruction that the chip has. Tiles of keys are taken in ascending order from
a start that depends on this sequence alone, and a tile's rows never mix: a row's result does not depend on the other rows.

Device functions only; `paged_attention`, `decode_attention` and `attention_mass` are the operations, and `launch` is what their
launchers share.
"""

import math

import triton
import triton.language as tl

LN2: tl.constexpr = tl.constexpr(math.log(2.0))
# The maximum before any key: finite, so that a row which sees no key of a tile gets exp2(-inf - NOTHING) = 0, never inf - inf.
NOTHING: tl.constexpr = tl.constexpr(-1e30)


@triton.jit
def as_operand(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """Keys or values in a dtype that `tl.dot` accepts beside queries of `dtype`; bytes are the bits of e4m3.

    The bits of e4m3 moved into place are an fp16 that is 2^8 times too small, subnormals included. That needs no fp8 instruction:
    Triton has none for e4m3 below compute capability 8.9, and its interpreter computes fp8 wrongly.
    """
    if x.dtype == tl.uint8:
        bits = x.to(tl.uint16)
        half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
        x = half.to(tl.float32) * 256.0
    if INTERPRETED:
        x = x.to(tl.float32)
    else:
        x = x.to(dtype)
    return x


@triton.jit
def block_ids(table, keys, seen, BLOCK_SIZE: tl.constexpr):
    """The block of each key, as int64, because a block id times a block's stride may exceed 2^31."""
    return tl.load(table + keys // BLOCK_SIZE, mask=seen, other=0).to(tl.int64)


@triton.jit
def load_pointers(k_pointers, v_pointers, seen, inside, MASKED: tl.constexpr):
    """(keys [D, N], values [N, D]); with MASKED those `seen` [N] and `inside` [D], and zeros."""
    if MASKED:
        k = tl.load(k_pointers, mask=seen[None, :] & inside[:, None], other=0.0)
        v = tl.load(v_pointers, mask=seen[:, None] & inside[None, :], other=0.0)
    else:
        k = tl.load(k_pointers)
        v = tl.load(v_pointers)
    return k, v


@triton.jit
def load_boxes(
    boxes, table, start, seen, head_row, block_rows, side_rows, BLOCK_SIZE: tl.constexpr, MASKED: tl.constexpr
):
    """(keys [D, N], values [N, D]) from key `start` on, of one block. A box has all rows of its block, also those that were never
    written: with MASKED values not `seen` are 0, as 0 times theirs may be NaN; of keys, scores are masked."""
    row = head_row + tl.load(table + start // BLOCK_SIZE) * block_rows + start % BLOCK_SIZE
    k = boxes.load([row, 0]).T
    v = boxes.load([row + side_rows, 0])
    if MASKED:
        v = tl.where(seen[:, None], v, 0.0)
    return k, v


@triton.jit
def scores(q, k, k_scale, inner, outer, SCALED: tl.constexpr, SOFT_CAPPED: tl.constexpr):
    """q [M, D] times k [D, N], scaled and capped: fp32 [M, N] in units of log2.

    Without a cap, `inner` is scale * log2(e). With one, cap * tanh(s / cap) = cap - 2 cap / (exp(2 s / cap) + 1), which needs no
    tanh and is right at both infinities: `outer` is cap * log2(e) and `inner` turns a product into the exponent of 2.
    """
    s = tl.dot(q, k, input_precision="ieee")
    if SCALED:
        s = s * k_scale[None, :]
    s = s * inner
    if SOFT_CAPPED:
        s = outer - 2 * outer / (tl.exp2(s) + 1)
    return s


@triton.jit
def sweep(
    acc,
    top,
    total,
    q,
    positions,
    kv,  # this head's keys of block 0
    scales,  # this head's key scale of block 0, or None
    table,
    begin,
    end,
    low,
    high,
    window,
    inner,
    outer,
    stride_block,
    stride_side,
    stride_token,
    stride_scale_block,
    stride_scale_side,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    SOFT_CAPPED: tl.constexpr,
    INTERPRETED: tl.constexpr,
    boxes=None,  # `boxes.describe` of the pool, in boxes of BLOCK_N rows: keys and values come from there instead
    head_row=0,  # this head's first row of keys in block 0
):
    """Take the keys of tiles [begin, end) into (acc, top, total).

    Without MASKED every row sees every one of those keys. With it, only keys in [low, high) exist, and row i sees them up to
    positions[i] (CAUSAL) and above positions[i] - window (WINDOWED).
    """
    SCALED: tl.constexpr = scales is not None
    dims = tl.arange(0, D_PAD)
    for start in range(begin, end, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        if MASKED:
            seen = (keys >= low) & (keys < high)
        else:
            seen = keys >= 0
        if boxes is not None:
            k, v = load_boxes(
                boxes,
                table,
                start,
                seen,
                head_row,
                (stride_block // D).to(tl.int32),
                stride_side // D,
                BLOCK_SIZE,
                MASKED,
            )
        else:
            block = block_ids(table, keys, seen, BLOCK_SIZE)
            offsets = block * stride_block + (keys % BLOCK_SIZE) * stride_token
            k_pointers = kv + offsets[None, :] + dims[:, None]
            v_pointers = kv + stride_side + offsets[:, None] + dims[None, :]
            k, v = load_pointers(k_pointers, v_pointers, seen, dims < D, MASKED or D != D_PAD)
        k_scale = 1.0
        if SCALED:
            k_scale = tl.load(scales + block * stride_scale_block, mask=seen, other=0.0)
        s = scores(q, as_operand(k, q.dtype, INTERPRETED), k_scale, inner, outer, SCALED, SOFT_CAPPED)
        if MASKED:
            visible = seen[None, :]
            if CAUSAL:
                visible = visible & (keys[None, :] <= positions[:, None])
            if WINDOWED:
                visible = visible & (keys[None, :] > positions[:, None] - window)
            s = tl.where(visible, s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        if SCALED:
            v_scale = tl.load(scales + stride_scale_side + block * stride_scale_block, mask=seen, other=0.0)
            p = p * v_scale[None, :]
        v = as_operand(v, q.dtype, INTERPRETED)
        if (
            MASKED and boxes is not None
        ):  # a box has all rows of its block, and 0 times what was never written may be NaN
            v = tl.where(seen[:, None], v, 0.0)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
        top = new_top
    return acc, top, total


@triton.jit
def finish(acc, top, total):
    """(output, its log-sum-exp in natural units) of what `sweep` gathered: 0 and -inf if there was no key."""
    some = total > 0
    weight = tl.where(some, total, 1.0)
    return acc / weight[:, None], tl.where(some, (top + tl.log2(weight)) * LN2, float("-inf"))
