"""y = x W^T for decode sizes, W in 4 or 8 bits (W4A16, W8A16): weights are read once, unpacked in registers, fed to tensor cores.

Shapes: x fp16 or bf16 [rows, columns], W a `QuantizedMatrix` [outputs, columns], y [rows, outputs] in x's type. Sums in fp32.

Floor: `matrix.nbytes` over memory bandwidth (4096 x 14336 in 4 bits, groups of 128: 31.2 MB, 6.5 us at 4.8 TB/s), until
2 * rows * outputs * columns over the tensor cores' rate passes it at some 70 rows. A program must not be bound by its own
instructions: in those 6.5 us an H200 issues 3.3 of them per 4-bit weight, and twice that per 8-bit weight. The loop has 2.4 (AWQ),
3.4 (Q4_0), 5.0 (Q4_1), 4.1 (Q8_0), 2.6 (int8), counted in the compiler's output for sm_90. Hence:

- no integer is converted to float: it is or-ed into the mantissa of 128 (bf16) or 1024 (fp16), two at a time, and is then too
  large by that much, which a 16-bit subtraction removes exactly, together with 8 or the zero point;
- a minimum is turned into scale * (q - 8) + middle, and x is also multiplied with the middles (small numbers, in x's type):
  tensor cores have room for twice the products, and summing x over a group would take more instructions;
- scales multiply the fp32 sums of a group (16 rows: half as many products as weights), so that W itself is never rounded;
- columns are split over programs by a rule of the shape and the chip alone; partial sums are added in the order of the columns.

Source: dequantization fused into the product, AWQ (Lin et al. 2023, arXiv 2306.00978, section 4); a scale for each group of a
column, FineQuant (Kim et al. 2023, arXiv 2308.09723); integers in the mantissa, Kim et al. 2022 (arXiv 2211.10017).
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.linear.quantized_matrix import TILE, Form, QuantizedMatrix, dequantize
from kernels.gpu.runtime import INTERPRETED, Variant, operand

KERNEL_ROWS = 64  # with more, dequantizing once for cuBLAS costs less than the product itself
_UNPACKED_BYTES = 64 << 20  # of 16-bit weights at a time: some 100 MB are enough to fill a chip with cuBLAS' tiles
_ROWS_AT_ONCE = 512  # in the kernel: partial sums stay below 100 MB
# Programs per multiprocessor, by lanes: as many as Hopper has registers (32) or shared memory (64) for at 16 rows. They hide each
# other's latency.
_RESIDENT = {32: 4, 64: 3}
_PROCESSORS = 132  # assumed if Triton interprets and there is no chip
_FORMS: dict[Form, int] = {"symmetric": 0, "zeros": 1, "minima": 2, "channel": 3}


@triton.jit
def _in_mantissa(words, SHIFT: tl.constexpr, MASK: tl.constexpr, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """Bits `MASK` of int16 words shifted right, or-ed into 128 (bf16) or 1024 (fp16): the integer that they are, plus that."""
    if INTERPRETED:
        NUMBER: tl.constexpr = 15 if MASK == "0x000f000f" else (0x7F if MASK == "0x007f007f" else 0x80)
        bits = ((words >> SHIFT) & NUMBER) | (0x4300 if dtype == tl.bfloat16 else 0x6400)
    else:  # the same on two words at once: left to itself, the compiler splits them, 2.7 instructions per weight instead of 0.9
        TEXT: tl.constexpr = "0" if SHIFT == 0 else ("4" if SHIFT == 4 else ("8" if SHIFT == 8 else "12"))
        MAGIC: tl.constexpr = "0x43004300" if dtype == tl.bfloat16 else "0x64006400"
        bits = tl.inline_asm_elementwise(
            "{ .reg .b32 a; shr.b32 a, $1, " + TEXT + "; lop3.b32 $0, a, " + MASK + ", " + MAGIC + ", 0xea; }",
            "=r,r", [words], dtype=tl.int16, is_pure=True, pack=2,
        )  # fmt: skip
    return operand(bits.to(dtype, bitcast=True), INTERPRETED)


@triton.jit
def _floats(words, PLANE: tl.constexpr, BITS: tl.constexpr, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """The integers of one plane of int16 words; 4-bit ones are 128 (bf16) or 1024 (fp16) too large."""
    if BITS == 4:
        floats = _in_mantissa(words, 4 * PLANE, "0x000f000f", dtype, INTERPRETED)
    else:  # two's complement: 7 bits minus 128 times the eighth, which or-ed into 128 gives 256, into 1024 gives 1152
        low = _in_mantissa(words, 8 * PLANE, "0x007f007f", dtype, INTERPRETED)
        floats = low - _in_mantissa(words, 8 * PLANE, "0x00800080", dtype, INTERPRETED)
    return floats


@triton.jit(do_not_specialize=["rows"])
def _product(
    x, words, scales, extras, bias, out, rows, outputs, columns, x_stride, spans, split_spans, groups,
    FORM: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, LANES: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    TILE: tl.constexpr, WHOLE: tl.constexpr, PARTIAL: tl.constexpr, HAS_BIAS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Rows `[BLOCK_ROWS * i, ..)` times output tile j over the columns of split k; i runs fastest, so that programs that read the
    same weights run together and all but one find them in the L2 cache."""
    PLANES: tl.constexpr = 16 // BITS
    dtype: tl.constexpr = tl.bfloat16 if x.dtype.element_ty == tl.bfloat16 else tl.float16
    OFFSET: tl.constexpr = 128.0 if dtype == tl.bfloat16 else 1024.0
    tile, split = tl.program_id(1), tl.program_id(2)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    lane, output = tl.arange(0, LANES), tl.arange(0, TILE)
    x_rows = x + row.to(tl.int64)[:, None] * x_stride + lane[None, :]
    row_mask = (row < rows)[:, None]
    first = split * split_spans
    tile_words = words + (tile.to(tl.int64) * spans + first) * LANES * TILE + output[None, :] * LANES + lane[:, None]
    tile_scales = tile.to(tl.int64) * groups * TILE + output
    total = tl.full((BLOCK_ROWS, TILE), 0.0, tl.float32)
    for span in range(first, min(first + split_spans, spans)):
        packed = tl.load(tile_words)
        tile_words += LANES * TILE
        part = tl.full((BLOCK_ROWS, TILE), 0.0, tl.float32)
        for plane in tl.static_range(PLANES):
            column = (span * PLANES + plane) * LANES
            mask = row_mask if WHOLE else row_mask & (column + lane < columns)[None, :]
            chunk = operand(tl.load(x_rows + column, mask, 0.0), INTERPRETED)
            floats = _floats(packed, plane, BITS, dtype, INTERPRETED)
            group = tile_scales + column // GROUP * TILE
            if FORM != 3 and plane * LANES % GROUP == 0:
                scale = tl.load(scales + group).to(tl.float32)
                if FORM != 0:
                    extra = tl.load(extras + group).to(tl.float32)
            if FORM == 1:
                floats = floats - (extra + OFFSET).to(floats.dtype)[None, :]
            elif BITS == 4:
                floats = floats - (OFFSET + 8)
            if FORM == 2:
                middle = (extra + 8 * scale).to(floats.dtype)
                total = tl.dot(chunk, tl.broadcast_to(middle[None, :], (LANES, TILE)), total)
            if FORM == 3:
                total = tl.dot(chunk, floats, total)
            else:
                part = tl.dot(chunk, floats, part)
                if (plane + 1) * LANES % GROUP == 0:
                    total += part * scale[None, :]
                    part = tl.full((BLOCK_ROWS, TILE), 0.0, tl.float32)
    if FORM == 3:
        total *= tl.load(scales + tile_scales)[None, :]
    output += tile * TILE
    if HAS_BIAS:
        total += tl.load(bias + output, output < outputs, 0.0).to(tl.float32)[None, :]
    place = (row.to(tl.int64) + (split.to(tl.int64) * rows if PARTIAL else 0))[:, None] * outputs + output[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), row_mask & (output < outputs)[None, :])


@triton.jit
def _unpack(
    words, scales, extras, out, outputs, columns, spans, groups,
    FORM: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, LANES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Span i of tile j, plane by plane. Memory is the bound, so integers are simply converted."""
    PLANES: tl.constexpr = 16 // BITS
    span, tile = tl.program_id(0), tl.program_id(1)
    lane, output = tl.arange(0, LANES), tl.arange(0, TILE)
    packed = tl.load(
        words + (tile.to(tl.int64) * spans + span) * LANES * TILE + output[:, None] * LANES + lane[None, :]
    )
    rows = tile.to(tl.int64) * TILE + output
    for plane in tl.static_range(PLANES):
        column = (span * PLANES + plane) * LANES
        place = tile.to(tl.int64) * groups * TILE + (0 if FORM == 3 else column // GROUP * TILE) + output
        values = (packed >> (BITS * plane)).to(tl.int32)
        values = values & 15 if BITS == 4 else (values << 24) >> 24
        floats = (values - 8 if BITS == 4 and FORM == 0 else values).to(tl.float32)
        if FORM == 1:
            floats -= tl.load(extras + place).to(tl.float32)[:, None]
        floats *= tl.load(scales + place).to(tl.float32)[:, None]
        if FORM == 2:
            floats += tl.load(extras + place).to(tl.float32)[:, None]
        inside = (rows < outputs)[:, None] & (column + lane < columns)[None, :]
        tl.store(out + rows[:, None] * columns + (column + lane)[None, :], floats.to(out.dtype.element_ty), inside)


@triton.jit
def _add(partials, bias, out, outputs, size, SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    """Partial sums [SPLITS, size = rows * outputs] added in order."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.full((BLOCK,), 0.0, tl.float32)
    for _ in tl.static_range(SPLITS):
        total += tl.load(partials + place, place < size, 0.0)
        partials += size
    if HAS_BIAS:
        total += tl.load(bias + place % outputs, place < size, 0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), place < size)


def runs_in_kernel(rows: int) -> bool:
    """Whether `rows` rows are multiplied here rather than by cuBLAS on dequantized tiles: unpacking the weights for every 64 rows
    still costs less than writing and reading them in 16 bits (4 to 8 times the bytes)."""
    return rows <= KERNEL_ROWS


def splits_for(tiles: int, spans: int, lanes: int, processors: int) -> int:
    """How many programs share an output tile's columns: as many as the chip's `processors` hold at once, since a few more would
    make a second, nearly empty round; each has at least 4 spans. Never a function of the rows, which would make a row's sum depend
    on the other rows."""
    wanted = min(_RESIDENT[lanes] * processors // tiles, spans // 4)
    return -(-spans // -(-spans // max(wanted, 1)))  # the number needed if all but the last have equal length


def quantized_linear(
    x: Tensor, matrix: QuantizedMatrix, bias: Tensor | None = None, *, batch_invariant: bool = False
) -> Tensor:
    """x [rows, columns] times W^T plus `bias` [outputs]: [rows, outputs] in x's type.

    Args:
        x: fp16 or bf16, rows contiguous; also fp32 if Triton interprets.
        matrix: packed weights.
        bias: any float type.
        batch_invariant: give a row the same bits however many rows there are, by using this kernel for any number of them.

    Raises:
        ValueError: x has another type or width than the weights take.
    """
    if x.shape[1] != matrix.columns or x.stride(1) != 1:
        raise ValueError(
            f"x is {list(x.shape)} with strides {x.stride()}; the weights take contiguous rows of {matrix.columns}"
        )
    if x.dtype not in (torch.float16, torch.bfloat16) and not (INTERPRETED and x.dtype == torch.float32):
        raise ValueError(f"activations must be fp16 or bf16, not {x.dtype}")
    if runs_in_kernel(len(x)):
        return _launch(x, matrix, bias)
    if not batch_invariant:
        return _by_dequantizing(x, matrix, bias)
    return torch.cat([_launch(some, matrix, bias) for some in torch.split(x, _ROWS_AT_ONCE)])


def reference_quantized_linear(x: Tensor, matrix: QuantizedMatrix, bias: Tensor | None = None) -> Tensor:
    """What `quantized_linear` computes, in plain torch: in fp64, rounded once."""
    product = x.double() @ dequantize(matrix).double().t()
    return (product if bias is None else product + bias.double()).to(x.dtype)


def _launch(x: Tensor, matrix: QuantizedMatrix, bias: Tensor | None) -> Tensor:
    rows, outputs = len(x), matrix.outputs
    out = x.new_empty((rows, outputs))
    if not rows:
        return out
    tiles, spans, _, lanes = matrix.words.shape
    splits = splits_for(tiles, spans, lanes, _processors(x.device))
    target = out if splits == 1 else x.new_empty((splits, rows, outputs), dtype=torch.float32)
    block_rows, warps, stages = config_for(rows)
    _product[(-(-rows // block_rows), tiles, splits)](
        x, matrix.words, matrix.scales, matrix.scales if matrix.extras is None else matrix.extras,
        x if bias is None else bias, target, rows, outputs, matrix.columns, x.stride(0), spans, -(-spans // splits),
        matrix.scales.shape[1], FORM=_FORMS[matrix.form], BITS=matrix.bits, GROUP=matrix.group or lanes, LANES=lanes,
        BLOCK_ROWS=block_rows, TILE=TILE, WHOLE=matrix.columns % (matrix.planes * lanes) == 0, PARTIAL=splits > 1,
        HAS_BIAS=bias is not None and splits == 1, INTERPRETED=INTERPRETED, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    if splits > 1:
        _add[(-(-out.numel() // 1024),)](
            target, x if bias is None else bias, out, outputs, out.numel(), SPLITS=splits,
            HAS_BIAS=bias is not None, BLOCK=1024,
        )  # fmt: skip
    return out


def config_for(rows: int) -> tuple[int, int, int]:
    """(rows per program, warps, stages). A tensor core takes at least 16 rows; a row's arithmetic is the same with 32."""
    return (16 if rows <= 16 else 32), 4, 4


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else _PROCESSORS


def _by_dequantizing(x: Tensor, matrix: QuantizedMatrix, bias: Tensor | None) -> Tensor:
    """For many rows: weights dequantized to x's type, some tiles at a time, and multiplied by cuBLAS."""
    out = x.new_empty((len(x), matrix.outputs))
    step = max(1, _UNPACKED_BYTES // (2 * TILE * matrix.columns))
    for first in range(0, len(matrix.words), step):
        some = matrix.tiles(first, first + step)
        span = slice(first * TILE, first * TILE + some.outputs)
        weight = unpack(some, x.dtype).t()
        if bias is None:
            torch.mm(x, weight, out=out[:, span])
        else:
            torch.addmm(bias[span].to(x.dtype), x, weight, out=out[:, span])
    return out


def unpack(matrix: QuantizedMatrix, dtype: torch.dtype) -> Tensor:
    """What `quantized_matrix.dequantize` computes, rounded to `dtype`: [outputs, columns]; each byte is read once."""
    out = torch.empty((matrix.outputs, matrix.columns), dtype=dtype, device=matrix.words.device)
    tiles, spans, _, lanes = matrix.words.shape
    _unpack[(spans, tiles)](
        matrix.words, matrix.scales, matrix.scales if matrix.extras is None else matrix.extras, out,
        matrix.outputs, matrix.columns, spans, matrix.scales.shape[1], FORM=_FORMS[matrix.form], BITS=matrix.bits,
        GROUP=matrix.group or lanes, LANES=lanes, TILE=TILE,
    )  # fmt: skip
    return out


def _variant(name: str, kind: str, form: Form, bits: int, group: int, rows: int, partial: bool) -> Variant:
    """A product of `rows` rows; `kind` is Triton's name for x's type."""
    block_rows, warps, stages = config_for(rows)
    pointers = {"x": f"*{kind}", "words": "*i16", "bias": f"*{kind}", "out": "*fp32" if partial else f"*{kind}"}
    pointers |= {"scales": "*fp32" if form == "channel" else "*fp16", "extras": "*fp16"}
    numbers = ("outputs", "columns", "x_stride", "spans", "split_spans", "groups")
    lanes = 32 if group == 32 else 64
    return Variant(
        name=name,
        kernel=_product,
        signature=pointers | dict.fromkeys(("rows", *numbers), "i32"),
        constants={
            "FORM": _FORMS[form], "BITS": bits, "GROUP": group or lanes, "LANES": lanes, "BLOCK_ROWS": block_rows,
            "TILE": TILE, "WHOLE": True, "PARTIAL": partial, "HAS_BIAS": False, "INTERPRETED": False,
        },
        warps=warps,
        stages=stages,
        aligned=(*pointers, "outputs", "columns", "x_stride"),
    )  # fmt: skip


_SIZES = ("outputs", "columns", "spans", "groups")
VARIANTS = (
    _variant("w4 awq 128 bf16", "bf16", "zeros", 4, 128, 16, True),
    _variant("w4 awq 128 fp16", "fp16", "zeros", 4, 128, 16, True),
    _variant("w4 awq 128 bf16 32 rows", "bf16", "zeros", 4, 128, 32, True),
    _variant("w4 awq 64 bf16", "bf16", "zeros", 4, 64, 16, True),
    _variant("w4 q4_0 bf16", "bf16", "symmetric", 4, 32, 16, True),
    _variant("w4 q4_0 fp16 32 rows", "fp16", "symmetric", 4, 32, 32, False),
    _variant("w4 q4_1 bf16", "bf16", "minima", 4, 32, 16, True),
    _variant("w8 q8_0 bf16", "bf16", "symmetric", 8, 32, 16, True),
    _variant("w8 channel bf16", "bf16", "channel", 8, 0, 16, True),
    _variant("w8 channel fp16 32 rows", "fp16", "channel", 8, 0, 32, False),
    Variant(
        name="unpack awq 128 bf16",
        kernel=_unpack,
        signature={"words": "*i16", "scales": "*fp16", "extras": "*fp16", "out": "*bf16"}
        | dict.fromkeys(_SIZES, "i32"),
        constants={"FORM": 1, "BITS": 4, "GROUP": 128, "LANES": 64, "TILE": TILE},
        aligned=("words", "scales", "extras", "out", "outputs", "columns"),
    ),
    Variant(
        name="add 8 partial sums bf16",
        kernel=_add,
        signature={"partials": "*fp32", "bias": "*bf16", "out": "*bf16", "outputs": "i32", "size": "i32"},
        constants={"SPLITS": 8, "HAS_BIAS": False, "BLOCK": 1024},
        aligned=("partials", "bias", "out", "outputs", "size"),
    ),
)
