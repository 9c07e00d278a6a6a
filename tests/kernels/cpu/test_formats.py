"""Every type of weights that the C++ kernels know: packed to the bit, multiplied as the reference does, in every variant."""

import ctypes

import gguf
import numpy as np
import pytest
import torch

from kernels.cpu import native_reference as reference
from kernels.cpu.build import compiler
from kernels.cpu.layouts import FORMATS, packed_size
from kernels.cpu.packing import PackedMatrix, pack_gguf, unpack
from kernels.cpu.variants import supported
from tests.kernels.cpu.test_native import emulated, ops, weights

__all__ = ["emulated", "ops"]  # the fixtures
pytestmark = pytest.mark.skipif(not supported() or compiler() is None, reason="no C++ compiler, or another processor")
EACH = pytest.mark.parametrize("kind", FORMATS)
# Where a block has fp16 numbers, if not in its first two bytes.
SCALES_AT = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)} | dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2))
FILE_SHARE = 1.06  # of a file's bytes that packed weights may take


def blocks(kind, outputs, columns, seed=0, limit=60):
    """Random blocks, uint8 [outputs, bytes]; with bytes under 60, or 60 more than 128, no fp16 scale is NaN or infinite."""
    form, generator = FORMATS[kind], np.random.default_rng(seed + FORMATS[kind].number)
    stored = generator.integers(0, limit, (outputs, columns // form.columns * form.block), dtype=np.uint8)
    stored |= generator.integers(0, 2, stored.shape, dtype=np.uint8) << 7
    if kind == "MXFP4":
        stored[:, :: form.block] = generator.integers(110, 140, stored[:, :: form.block].shape)
    return stored


def values(stored, kind):
    """What they stand for, by the gguf package: fp32 [outputs, columns]."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[kind]))


def close(ours, theirs, inputs, packed):
    """Within a few roundings of the largest sum of magnitudes there could be: rows differ by a million here."""
    most = (inputs.abs() @ unpack(packed).abs().T).amax(dim=1)
    assert ((ours - theirs).abs().amax(dim=1) <= 2e-6 * most).all()


@EACH
@pytest.mark.parametrize(("outputs", "columns"), [(16, 256), (35, 768), (160, 512)])
def test_packed_weights_are_the_files_to_the_bit(kind, outputs, columns):
    stored = blocks(kind, outputs, columns)
    packed = pack_gguf(torch.from_numpy(stored), kind)
    assert (packed.outputs, packed.columns, packed.kind) == (outputs, columns, kind)
    assert packed.records.shape == packed_size(kind, outputs, columns)
    assert torch.equal(unpack(packed), values(stored, kind))
    assert len(values(stored, kind).unique()) > 50


@EACH
def test_packed_weights_are_hardly_larger_than_the_file(kind):
    form = FORMATS[kind]
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]] == (form.columns, form.block)
    assert form.record <= FILE_SHARE * 16 * form.block


def test_every_exponent_of_mxfp4(ops):
    """From numbers under the smallest normal one to those near the largest: there are 255 scales, and no number."""
    stored = np.arange(255, dtype=np.uint8)[:, None].repeat(17, axis=1)
    packed = pack_gguf(torch.from_numpy(stored), "MXFP4")
    assert torch.equal(unpack(packed), values(stored, "MXFP4"))


def test_the_table_is_the_librarys(ops):
    for form in FORMATS.values():
        assert ops.library.headrace_block_bytes(form.number) == form.block
        assert ops.library.headrace_record_bytes(form.number) == form.record


@EACH
def test_every_variant_packs_the_same_bits(ops, kind):
    stored, form = torch.from_numpy(blocks(kind, 35, 512)), FORMATS[kind]
    records = torch.full(packed_size(kind, 35, 512), 255, dtype=torch.uint8)
    ops.library.headrace_pack(form.number, stored.data_ptr(), stored.stride(0), 35, 512, records.data_ptr())
    packed, out = PackedMatrix(records, 35, 512, kind), torch.empty(35, 512)
    assert torch.equal(records, pack_gguf(stored, kind).records)
    ops.library.headrace_unpack(ctypes.byref(packed.struct), out.data_ptr())
    assert torch.equal(out, unpack(packed))


@EACH
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 13, 50])
def test_products(ops, kind, rows):
    packed = pack_gguf(torch.from_numpy(blocks(kind, 83, 512)), kind)
    inputs = weights(rows, 512, seed=rows) * torch.logspace(-3, 3, rows)[:, None]
    close(ops.linear(inputs, packed), reference.linear(inputs, packed), inputs, packed)


@EACH
@pytest.mark.parametrize("byte", [0x00, 0x01, 0x7F, 0x80, 0xFF])
def test_products_at_the_ends_of_what_weights_and_activations_can_be(ops, kind, byte):
    """Where 16-bit sums would saturate: all quants alike, activations of one sign and of alternating ones."""
    stored, form = (
        np.full((16, 512 // FORMATS[kind].columns * FORMATS[kind].block), byte, dtype=np.uint8),
        FORMATS[kind],
    )
    halves = stored.reshape(-1, form.block)
    if kind == "MXFP4":
        halves[:, 0] = 120
    for at in SCALES_AT.get(kind, (0,)) if kind != "MXFP4" else ():
        halves[:, at : at + 2] = np.frombuffer(np.float16(0.01).tobytes(), dtype=np.uint8)
    packed = pack_gguf(torch.from_numpy(stored), kind)
    for inputs in (torch.full((5, 512), 3.0), torch.tensor([3.0, -3.0]).repeat(5, 256), torch.full((1, 512), -3.0)):
        close(ops.linear(inputs, packed), reference.linear(inputs, packed), inputs, packed)


@EACH
def test_a_row_does_not_depend_on_its_company(ops, kind):
    packed = pack_gguf(torch.from_numpy(blocks(kind, 83, 256)), kind)
    inputs = weights(40, 256)
    together = ops.linear(inputs, packed)
    for row in range(40):
        assert torch.equal(ops.linear(inputs[row : row + 1], packed)[0], together[row])
    for rows in range(2, 14):  # some are cut, some unpack a panel
        assert torch.equal(ops.linear(inputs[:rows], packed), together[:rows])


@pytest.mark.long
@EACH
def test_the_code_for_other_processors_gives_the_same_products(emulated, kind):
    """Integer sums are exact everywhere and groups are added in one order, so that not even a bit differs where additions of
    products are fused alike."""
    packed = pack_gguf(torch.from_numpy(blocks(kind, 83, 512)), kind)
    inputs = weights(13, 512) * torch.logspace(-3, 3, 13)[:, None]
    close(emulated.linear(inputs, packed), reference.linear(inputs, packed), inputs, packed)
    assert torch.equal(emulated.linear(inputs[4:5], packed)[0], emulated.linear(inputs, packed)[4])
    out = torch.empty(83, 512)
    emulated.library.headrace_unpack(ctypes.byref(packed.struct), out.data_ptr())
    assert torch.equal(out, unpack(packed))
