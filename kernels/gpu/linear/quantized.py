"""y = x W^T for up to 256 rows, W in 4 or 8 bits (W4A16, W8A16): weights are unpacked in registers and fed to tensor cores.

Shapes: x fp16 or bf16 [rows, columns], W a `QuantizedMatrix` [outputs, columns], y [rows, outputs] in x's type. Sums in fp32.

Floor: `matrix.nbytes` over memory bandwidth (4096 x 14336 in 4 bits, groups of 128: 31.2 MB, 6.5 us at 4.8 TB/s), until
2 * rows * outputs * columns over the tensor cores' rate passes it at some 70 rows. A program must not be bound by its own
instructions: in those 6.5 us an H200 issues 3.3 of them per 4-bit weight, and twice that per 8-bit weight. The loop has 2.4 (AWQ),
3.6 (Q4_0), 4.5 (Q8_0) for 16 rows, and 5.6 (AWQ), 8.4 (Q4_0) for 64, counted in Triton 3.9's output for sm_90. Hence:

- no integer is converted to float: it is or-ed into the mantissa of 128 (bf16) or 1024 (fp16), two at a time, and is then too
  large by that much, which a 16-bit subtraction removes exactly, together with 8 or the zero point;
- a minimum is turned into scale * (q - 8) + middle, and x is also multiplied with the middles (small numbers, in x's type):
  tensor cores have room for twice the products, and summing x over a group would take more instructions;
- scales multiply the fp32 sums of a group (16 rows: half as many products as weights), so that W itself is never rounded;
- columns are split over programs by a rule of the shape and the chip alone, and parts are added in order (`split_sums`);
- from 33 rows on a program has 64 of them, and 8 warps: words are read half as often as by tiles of 32 rows.

A row has the same bits in every tile, and so alone and in any batch of up to 256 rows: each tile has its products computed by the
same instruction, in the order of the columns (`_dot`). With more rows, W is unpacked to 16 bits for cuBLAS: by count, what its
instruction gains (Hopper's own, with weights in shared memory) is then more than what writing and reading them once more costs.

Source: dequantization fused into the product, AWQ (Lin et al. 2023, arXiv 2306.00978, section 4); a scale for each group of a
column, FineQuant (Kim et al. 2023, arXiv 2308.09723); integers in the mantissa, Kim et al. 2022 (arXiv 2211.10017).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.linear.quantized_matrix import TILE, Form, QuantizedMatrix, dequantize, lanes_of
from kernels.gpu.linear.split_sums import FOLD, PartialSums, add_parts, processors, splits_for, taken
from kernels.gpu.runtime import INTERPRETED, Variant, operand

KERNEL_ROWS = 256  # with more, dequantizing once for cuBLAS costs less than the product itself
REHEARSED_ROWS = (1, 17, 33, 65, KERNEL_ROWS + 1)  # each has another shape of program, or other kernels
_UNPACKED_BYTES = 64 << 20  # of 16-bit weights at a time: some 100 MB are enough to fill a chip with cuBLAS' tiles
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


@triton.jit
def _columns(
    x_rows, row_mask, tile_words, scales, extras, tile_scales, first, last, columns,
    FORM: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, LANES: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    TILE: tl.constexpr, WHOLE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """The columns of spans [first, last): fp32 [1, BLOCK_ROWS, TILE]."""
    PLANES: tl.constexpr = 16 // BITS
    dtype: tl.constexpr = tl.bfloat16 if x_rows.dtype.element_ty == tl.bfloat16 else tl.float16
    OFFSET: tl.constexpr = 128.0 if dtype == tl.bfloat16 else 1024.0
    lane = tl.arange(0, LANES)
    words = tile_words + first.to(tl.int64) * LANES * TILE + tl.arange(0, TILE)[None, :] * LANES + lane[:, None]
    total = tl.full((1, BLOCK_ROWS, TILE), 0.0, tl.float32)
    for span in range(first, last):
        packed = tl.load(words)
        words += LANES * TILE
        part = tl.full((1, BLOCK_ROWS, TILE), 0.0, tl.float32)
        for plane in tl.static_range(PLANES):
            column = (span * PLANES + plane) * LANES
            mask = row_mask if WHOLE else row_mask & (column + lane < columns)[None, :]
            chunk = operand(tl.load(x_rows + column + lane[None, :], mask, 0.0), INTERPRETED)
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
                total = _dot(chunk, tl.broadcast_to(middle[None, :], (LANES, TILE)), total)
            if FORM == 3:
                total = _dot(chunk, floats, total)
            else:
                part = _dot(chunk, floats, part)
                if (plane + 1) * LANES % GROUP == 0:
                    total += part * scale[None, None, :]
                    part = tl.full((1, BLOCK_ROWS, TILE), 0.0, tl.float32)
    if FORM == 3:
        total *= tl.load(scales + tile_scales)[None, None, :]
    return total


@triton.jit
def _dot(rows, weights, total):
    """rows [R, K] times weights [K, N] added to total [1, R, N]. As a batch of one: of batches Triton computes any number of rows
    by the same instruction (m16n8k16), so that a row's bits do not depend on the tile that it stands in. From 64 rows on it would
    take another one on Hopper and Blackwell, which has the weights in shared memory and need not add in the same order."""
    return tl.dot(rows[None, :, :], weights[None, :, :], total)


@triton.jit(do_not_specialize=["rows"])
def _product(
    x, words, scales, extras, bias, out, sums, arrived, rows, outputs, columns, x_stride, spans, split_spans, splits, groups,
    FORM: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, LANES: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    TILE: tl.constexpr, WHOLE: tl.constexpr, FOLD: tl.constexpr, FOLDED: tl.constexpr, SHARED: tl.constexpr,
    HAS_BIAS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Rows `[BLOCK_ROWS * i, ..)` times output tile j over the columns of split k, or of fold k; i runs fastest, so that programs
    that read the same weights run together and all but one find them in the L2 cache."""
    tile, part = tl.program_id(1), tl.program_id(2)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_mask = (row < rows)[:, None]
    x_rows = x + row.to(tl.int64)[:, None] * x_stride
    tile_words = words + tile.to(tl.int64) * spans * LANES * TILE
    tile_scales = tile.to(tl.int64) * groups * TILE + tl.arange(0, TILE)
    if FOLDED:
        total = tl.full((1, BLOCK_ROWS, TILE), 0.0, tl.float32)
        for split in range(part * FOLD, min(part * FOLD + FOLD, splits)):
            first = split * split_spans
            total += _columns(
                x_rows, row_mask, tile_words, scales, extras, tile_scales, first, min(first + split_spans, spans), columns,
                FORM, BITS, GROUP, LANES, BLOCK_ROWS, TILE, WHOLE, INTERPRETED,
            )  # fmt: skip
    else:
        first = part * split_spans
        total = _columns(
            x_rows, row_mask, tile_words, scales, extras, tile_scales, first, min(first + split_spans, spans), columns,
            FORM, BITS, GROUP, LANES, BLOCK_ROWS, TILE, WHOLE, INTERPRETED,
        )  # fmt: skip
    total = tl.reshape(total, (BLOCK_ROWS, TILE))
    output = tile * TILE + tl.arange(0, TILE)
    if SHARED:
        width = tl.num_programs(1) * TILE
        place = row.to(tl.int64)[:, None] * width + output[None, :]
        part_stride = rows.to(tl.int64) * width
        tl.store(sums + part * part_stride + place, total, row_mask)
        tl.debug_barrier()  # one thread says for all of them that the part is there
        done = arrived + tl.program_id(0) * tl.num_programs(1) + tile
        if tl.atomic_add(done, 1, sem="acq_rel") == tl.num_programs(2) - 1:
            tl.store(done, 0)  # for the next product
            EACH: tl.constexpr = 1 if FOLDED else FOLD
            added = add_parts(sums + place, part_stride, tl.num_programs(2), row_mask, total, EACH)
            _store(out, bias, added, row, output, row_mask, outputs, HAS_BIAS)
    else:
        _store(out, bias, total, row, output, row_mask, outputs, HAS_BIAS)


@triton.jit
def _store(out, bias, total, row, output, row_mask, outputs, HAS_BIAS: tl.constexpr):
    """A tile of the result, the bias added."""
    inside = (output < outputs)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + output, output < outputs, 0.0).to(tl.float32)[None, :]
    place = row.to(tl.int64)[:, None] * outputs + output[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), row_mask & inside)


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


def runs_in_kernel(rows: int) -> bool:
    """Whether `rows` rows are multiplied here rather than by cuBLAS on dequantized tiles: unpacking the weights for every 64 rows
    still costs less than writing and reading them in 16 bits (4 to 8 times the bytes)."""
    return rows <= KERNEL_ROWS


def quantized_linear(
    x: Tensor,
    matrix: QuantizedMatrix,
    bias: Tensor | None = None,
    *,
    batch_invariant: bool = False,
    partial_sums: PartialSums | None = None,
) -> Tensor:
    """x [rows, columns] times W^T plus `bias` [outputs]: [rows, outputs] in x's type.

    Args:
        x: fp16 or bf16, rows contiguous; also fp32 if Triton interprets.
        matrix: packed weights.
        bias: any float type.
        batch_invariant: give a row the same bits however many rows there are, by using this kernel for any number of them. Up to
            `KERNEL_ROWS` it has them anyway.
        partial_sums: of `PartialSums.on(device, KERNEL_ROWS)`; None: parts get tensors of their own.

    Raises:
        ValueError: x has another type or width than the weights take.
    """
    if x.shape[1] != matrix.columns or x.stride(1) != 1:
        raise ValueError(
            f"x is {list(x.shape)} with strides {x.stride()}; the weights take contiguous rows of {matrix.columns}"
        )
    if x.dtype not in (torch.float16, torch.bfloat16) and not (INTERPRETED and x.dtype == torch.float32):
        raise ValueError(f"activations must be fp16 or bf16, not {x.dtype}")
    if not runs_in_kernel(len(x)) and not batch_invariant:
        return by_dequantizing(x, matrix, bias)
    out = x.new_empty((len(x), matrix.outputs))
    for some, place in zip(torch.split(x, KERNEL_ROWS), torch.split(out, KERNEL_ROWS), strict=True):
        _launch(some, matrix, bias, place, partial_sums)
    return out


def reference_quantized_linear(x: Tensor, matrix: QuantizedMatrix, bias: Tensor | None = None) -> Tensor:
    """What `quantized_linear` computes, in plain torch: in fp64, rounded once."""
    product = x.double() @ dequantize(matrix).double().t()
    return (product if bias is None else product + bias.double()).to(x.dtype)


@dataclass(frozen=True, slots=True)
class ProductShape:
    """Shape of a program.

    Attributes:
        rows: of x.
        warps: per program.
        stages: of the software pipeline.
        folded: whether it computes a fold of splits in place of one.
        registers: the most of a thread; None: the compiler's choice.
    """

    rows: int
    warps: int
    stages: int
    folded: bool
    registers: int | None = None


def config_for(rows: int) -> ProductShape:
    """By the number of rows alone. A tensor core takes at least 16 rows; a row's arithmetic is the same in every shape. From two
    tiles of rows on there are programs enough with a fold each. (128 rows would need more registers than there are.)"""
    if rows <= 32:
        return ProductShape(16 if rows <= 16 else 32, warps=4, stages=4, folded=False)
    # Left to itself, the compiler spills some for the sake of a second program.
    return ProductShape(64, warps=8, stages=3, folded=rows > 64, registers=255)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is cut.

    Attributes:
        shape: of a program.
        grid: tiles of rows, tiles of outputs, parts of the columns.
        splits: of the columns; a part has one, or `FOLD`.
        split_spans: spans of a split, but for the last.
    """

    shape: ProductShape
    grid: tuple[int, int, int]
    splits: int
    split_spans: int


def tiling(outputs: int, columns: int, rows: int, bits: int, group: int, processors: int) -> Tiling:
    """For `rows` rows and a matrix [outputs, columns] in groups of that many columns, 0 for one scale per output."""
    shape, lanes = config_for(rows), lanes_of(group)
    tiles, spans = -(-outputs // TILE), -(-columns // (lanes * 16 // bits))
    splits = splits_for(tiles, spans, lanes, processors)
    parts = -(-splits // FOLD) if shape.folded else splits
    return Tiling(shape, (-(-rows // shape.rows), tiles, parts), splits, -(-spans // splits))


def _launch(
    x: Tensor, matrix: QuantizedMatrix, bias: Tensor | None, out: Tensor, partial_sums: PartialSums | None
) -> None:
    rows, outputs, columns, lanes = x.shape[0], matrix.outputs, matrix.columns, matrix.lanes
    if not rows:
        return
    cut = tiling(outputs, columns, rows, matrix.bits, matrix.group, processors(x.device))
    row_tiles, tiles, parts = cut.grid
    sums, arrived = out, out
    if parts > 1:
        sums, arrived = taken(partial_sums, x.device, parts, rows, tiles, row_tiles)
    _product[cut.grid](
        x, matrix.words, matrix.scales, matrix.scales if matrix.extras is None else matrix.extras,
        x if bias is None else bias, out, sums, arrived, rows, outputs, columns, x.stride(0), matrix.words.shape[1],
        cut.split_spans, cut.splits, matrix.scales.shape[1], FORM=_FORMS[matrix.form], BITS=matrix.bits,
        GROUP=matrix.group or lanes, LANES=lanes, BLOCK_ROWS=cut.shape.rows, TILE=TILE,
        WHOLE=columns % (matrix.planes * lanes) == 0, FOLD=FOLD, FOLDED=cut.shape.folded, SHARED=parts > 1,
        HAS_BIAS=bias is not None, INTERPRETED=INTERPRETED, num_warps=cut.shape.warps, num_stages=cut.shape.stages,
        maxnreg=cut.shape.registers,
    )  # fmt: skip


def by_dequantizing(x: Tensor, matrix: QuantizedMatrix, bias: Tensor | None = None) -> Tensor:
    """`quantized_linear` of many rows: weights dequantized to x's type, some tiles at a time, and multiplied by cuBLAS."""
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


def _variant(name: str, kind: str, form: Form, bits: int, group: int, rows: int, shared: bool) -> Variant:
    """A product of `rows` rows; `kind` is Triton's name for x's type."""
    shape = config_for(rows)
    pointers = {"x": f"*{kind}", "words": "*i16", "bias": f"*{kind}", "out": f"*{kind}"}
    pointers |= {"scales": "*fp32" if form == "channel" else "*fp16", "extras": "*fp16"}
    pointers |= {"sums": "*fp32", "arrived": "*i32"} if shared else {"sums": f"*{kind}", "arrived": f"*{kind}"}
    numbers = ("rows", "outputs", "columns", "x_stride", "spans", "split_spans", "splits", "groups")
    lanes = lanes_of(group)
    return Variant(
        name=f"{name} {shape.rows} rows{' folded' if shape.folded else ''}",
        kernel=_product,
        signature=pointers | dict.fromkeys(numbers, "i32"),
        constants={
            "FORM": _FORMS[form], "BITS": bits, "GROUP": group or lanes, "LANES": lanes, "BLOCK_ROWS": shape.rows,
            "TILE": TILE, "WHOLE": True, "FOLD": FOLD, "FOLDED": shape.folded, "SHARED": shared, "HAS_BIAS": False,
            "INTERPRETED": False,
        },
        warps=shape.warps,
        stages=shape.stages,
        registers=shape.registers,
        aligned=(*pointers, "outputs", "columns", "x_stride"),
    )  # fmt: skip


_SIZES = ("outputs", "columns", "spans", "groups")
VARIANTS = (
    *(_variant("w4 awq 128 bf16", "bf16", "zeros", 4, 128, rows, True) for rows in (16, 32, 64, KERNEL_ROWS)),
    *(_variant("w4 q4_0 bf16", "bf16", "symmetric", 4, 32, rows, True) for rows in (16, 32, 64, KERNEL_ROWS)),
    *(_variant("w4 q4_1 bf16", "bf16", "minima", 4, 32, rows, True) for rows in (16, 64, KERNEL_ROWS)),
    *(_variant("w8 q8_0 bf16", "bf16", "symmetric", 8, 32, rows, True) for rows in (16, 64, KERNEL_ROWS)),
    *(_variant("w8 channel bf16", "bf16", "channel", 8, 0, rows, True) for rows in (16, 64, KERNEL_ROWS)),
    _variant("w4 awq 64 bf16", "bf16", "zeros", 4, 64, 16, True),
    _variant("w4 awq 128 fp16", "fp16", "zeros", 4, 128, 16, True),
    _variant("w4 q4_0 fp16 alone", "fp16", "symmetric", 4, 32, 32, False),
    _variant("w8 channel fp16 alone", "fp16", "channel", 8, 0, 32, False),
    Variant(
        name="unpack awq 128 bf16",
        kernel=_unpack,
        signature={"words": "*i16", "scales": "*fp16", "extras": "*fp16", "out": "*bf16"}
        | dict.fromkeys(_SIZES, "i32"),
        constants={"FORM": 1, "BITS": 4, "GROUP": 128, "LANES": 64, "TILE": TILE},
        aligned=("words", "scales", "extras", "out", "outputs", "columns"),
    ),
)
