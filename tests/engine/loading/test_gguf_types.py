"""Every storage type of GGUF files: values bit for bit those of the gguf package, groups that kernels take, refusals by name."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from configs.model.config import ModelConfig
from configs.model.source import ModelError, resolve_model
from engine.cpu.formats import packed_bytes
from engine.cpu.packed_weights import assemble_packed
from engine.loading import load
from engine.loading.dequantize import dequantize_into, to_q8_0
from engine.loading.gguf_tensors import READABLE
from engine.loading.stored import GROUPED
from engine.models.layout import expected_shapes, weights_bytes
from kernels.cpu.layouts import FORMATS
from kernels.cpu.packing import pack_float, unpack
from tests.engine.loading.test_loading import gguf_name, loaded, reordered, write_gguf

EACH_KIND = pytest.mark.parametrize("kind", sorted(READABLE), ids=lambda kind: kind.name)
REGROUPED = [Kind[name] for name, group in GROUPED.items() if name != group]
WIDE = 256  # columns: one block of the widest types


def drawn(kind, rows, columns, seed=0):
    """Random blocks, uint8 [rows, bytes]. Their scales are finite and of both signs, whichever bytes they are in."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(seed + kind)
    stored = generator.integers(0, 60, (rows, columns // block * size), dtype=np.uint8)
    stored |= generator.integers(0, 2, stored.shape, dtype=np.uint8) << 7
    if kind == Kind.MXFP4:
        stored[:, ::17] = generator.integers(104, 144, stored[:, ::17].shape)
    return stored


def values(stored, kind):
    """What the gguf package says is stored, fp32 [rows, columns]."""
    with np.errstate(all="ignore"):
        if kind == Kind.F64:
            return stored.view(np.float64).astype(np.float32)
        if (
            kind == Kind.Q1_0
        ):  # ggml's definition: fp16 d, then 128 bits from the lowest of each byte; d where 1, else -d
            blocks = stored.reshape(-1, 18)
            scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
            signs = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little") * np.float32(2) - 1
            return (signs * scales).reshape(*stored.shape[:-1], -1)
        return gguf.quants.dequantize(stored, kind)


def test_all_types_but_those_that_no_file_holds_are_read():
    readable = {kind.name for kind in READABLE}
    library = {kind.name for kind in gguf.quants._type_traits}
    assert readable == library | {"F64", "F32", "F16", "Q1_0"}
    assert {kind.name for kind in Kind} - readable == {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64"}
    assert readable >= GROUPED.keys()
    listed = (
        (Path(__file__).parents[3] / "README.md")
        .read_text(encoding="utf-8")
        .partition("GGUF types, mixed in any way:")[2]
    )
    assert set(listed.partition(".\n")[0].replace("\n", " ").strip().split(", ")) == readable


@EACH_KIND
@pytest.mark.parametrize("blocks", [1, 37, 4_100])
def test_dequantizing_is_bit_for_bit_the_gguf_packages(kind, blocks):
    """Any bytes, in amounts below and above what is converted at once; what is no number stays none."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = blocks if block > 1 else 256 * blocks
    stored = np.random.default_rng(kind + blocks).integers(0, 256, (blocks, size), dtype=np.uint8)
    out = torch.full((blocks, block), -1.0)
    expected = values(stored.reshape(1, -1), kind).reshape(out.shape)
    dequantize_into(torch.from_numpy(stored.reshape(-1)), kind, out)
    assert np.array_equal(out.numpy(), expected, equal_nan=True)
    numbers = ~np.isnan(expected)
    assert numbers.any() and np.array_equal(np.signbit(out.numpy())[numbers], np.signbit(expected)[numbers])


@pytest.mark.parametrize("kind", REGROUPED, ids=lambda kind: kind.name)
def test_regrouping_keeps_every_number(kind):
    stored = drawn(kind, 70, 2048)
    groups = to_q8_0(torch.from_numpy(stored), kind)
    assert groups.shape == (70, 2048 // 32 * 34)
    assert np.array_equal(gguf.quants.dequantize(groups.numpy(), Kind.Q8_0), values(stored, kind))
    assert len(np.unique(values(stored, kind))) > 100


def test_regrouping_rounds_only_what_half_precision_cannot_scale():
    """MXFP4 has 256 powers of two as scales, fp16 has 40."""
    stored = np.repeat(np.arange(255, dtype=np.uint8)[:, None], 17, axis=1)
    groups = to_q8_0(torch.from_numpy(stored), Kind.MXFP4)
    ours, theirs = gguf.quants.dequantize(groups.numpy(), Kind.Q8_0), values(stored, Kind.MXFP4)
    assert np.array_equal(ours[104:144], theirs[104:144])
    assert np.abs(ours[:104] - theirs[:104]).max() <= 2.0**-25
    assert np.isfinite(ours).all() and np.abs(ours[144:]).max() == 127 * 2.0**15


def typed(path, kind):
    """A Llama of one layer, all of whose matrices are of `kind`; and their values in our order."""
    generator = np.random.default_rng(1)
    description = ModelConfig(
        architecture="llama", vocab_size=320, hidden_size=WIDE, intermediate_size=WIDE, layers=1, heads=4, kv_heads=2,
        head_dim=64, rms_norm_eps=1e-6, rope_theta=1e4, rope_scaling=None, sliding_window=None,
        sliding_layers=(False,), qkv_bias=False, o_bias=False, mlp_bias=False, qk_norm=False,
        tie_word_embeddings=False, max_position=64, ends=(), dtype="gguf",
    )  # fmt: skip
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDE)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    expected = {}
    for number, (name, shape) in enumerate(expected_shapes(description).items()):
        if len(shape) == 1:
            writer.add_tensor(gguf_name(name), generator.normal(size=shape).astype(np.float32))
            continue
        stored = drawn(kind, *shape, seed=number)
        heads = 4 if ".q_proj" in name else 2 if ".k_proj" in name else None
        expected[name] = torch.from_numpy(values(stored, kind).copy())
        writer.add_tensor(gguf_name(name), stored if heads is None else reordered(stored, heads), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, expected


@EACH_KIND
def test_a_model_of_each_type_loads_exactly_and_for_the_kernels(tmp_path, kind):
    """`exact`: the file's numbers. `fast`: the same if kernels know the type or groups hold its numbers, else rounded to 8 bits."""
    path, expected = typed(tmp_path / "m.gguf", kind)
    config, weights = loaded(path)
    names = {
        part: f"model.layers.0.{part}.weight" for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
    }
    assert torch.equal(weights.embedding, expected["model.embed_tokens.weight"])
    assert torch.equal(weights.head, expected["lm_head.weight"])
    layer = weights.layers[0]
    assert torch.equal(layer.qkv.weight[:256], expected[names["self_attn.q_proj"]])
    assert torch.equal(layer.qkv.weight[256:384], expected[names["self_attn.k_proj"]])
    assert torch.equal(layer.down.weight, expected[names["mlp.down_proj"]])
    assert weights_bytes(config) == 4 * sum(map(np.prod, expected_shapes(config).values()))

    source = resolve_model(str(path))
    packed = load(source, config, "auto", assemble_packed)
    matrices = [packed.embedding, packed.head, packed.layers[0].q, packed.layers[0].k, packed.layers[0].down]
    originals = [
        expected["model.embed_tokens.weight"],
        expected["lm_head.weight"],
        *(expected[name] for name in names.values()),
    ]
    for matrix, original in zip(matrices, originals, strict=True):
        kept = kind.name in FORMATS or kind.name in GROUPED
        assert torch.equal(unpack(matrix), original if kept else unpack(pack_float(original)))
        assert matrix.kind == (kind.name if kind.name in FORMATS else "Q8_0")
    matrices += [getattr(packed.layers[0], role) for role in ("v", "o", "gate", "up")]
    assert packed_bytes(source, config, "auto") == sum(m.records.nbytes for m in matrices) + 3 * 4 * WIDE


def test_norms_and_biases_may_be_of_any_type(tiny_model, tmp_path):
    """llama.cpp keeps them in fp32, but nothing says that others do: rows of q and k are reordered value by value."""
    model, _ = tiny_model("llama-biased")
    plain = loaded(write_gguf(tmp_path / "plain.gguf", model))[1]
    path = write_gguf(tmp_path / "m.gguf", model, vectors=Kind.Q8_0)
    weights = loaded(path)[1]
    for name in ("input_norm", "post_norm"):
        ours, theirs = getattr(weights.layers[1], name), getattr(plain.layers[1], name)
        assert not torch.equal(ours, theirs)
        torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)
    torch.testing.assert_close(weights.layers[1].qkv.bias, plain.layers[1].qkv.bias, atol=0.02, rtol=0)


def patched(path, number):
    """The file with another number for the type of its embedding."""
    content = bytearray(path.read_bytes())
    place = content.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 16
    content[place : place + 4] = int(number).to_bytes(4, "little")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (Kind.I8, "I8"), (Kind.I64, "I64"), (Kind.Q8_1, "Q8_1"), (Kind.Q8_K, "Q8_K"),
        (31, "Q4_0_4_4"), (4, "Q4_2"), (99, "type 99"), (2**32 - 1, "type 4294967295"),
    ],
)  # fmt: skip
def test_a_type_that_nothing_reads_is_refused_by_name(tiny_model, tmp_path, number, name):
    path = patched(write_gguf(tmp_path / "m.gguf", tiny_model("llama")[0]), number)
    with pytest.raises(
        ModelError, match=rf"token_embd\.weight is stored as {name}, which cannot be read; known: BF16, F16,"
    ):
        loaded(path)


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.IQ4_NL, Kind.NVFP4], ids=lambda kind: kind.name)
def test_rows_that_are_no_whole_blocks_are_refused(tiny_model, tmp_path, kind):
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama")[0])
    content = bytearray(path.read_bytes())
    place = content.index(b"token_embd.weight") + len(b"token_embd.weight") + 4
    content[place : place + 8] = (48).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(
        ModelError, match=rf"rows of token_embd\.weight are 48 long, not a multiple of .*{kind.name} needs"
    ):
        loaded(patched(path, kind))
