"""Weights on their way to a GPU: which stay in which form, what that takes, and that the model computes with them."""

from dataclasses import replace

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from configs.model.source import ModelError
from engine.cpu.batch import Batch
from engine.cpu.decoder import Decoder
from engine.cpu.kv_pool import KvPool
from engine.cpu.weights import load_weights
from engine.gpu.formats import GpuArithmetic, choose_gpu_arithmetic
from engine.gpu.linear import Fp8, Grouped, SideBySide
from engine.gpu.weights import GpuAssembly, weights_bytes
from engine.linear import Linear
from engine.loading import load
from engine.loading.stored import GROUPED, stored_kinds
from kernels.gpu.linear import fp8
from kernels.gpu.linear.quantized_matrix import dequantize
from tests.engine.gpu.cases import CPU, chunk, described, gpu_model, gpu_weights, prompt
from tests.engine.loading.test_gguf_types import typed
from tests.engine.loading.test_loading import write_gguf


def mixed(name):
    """Mixed as quantizers do: v and down in more bits, one layer's o in a type without a kernel."""
    if "embed_tokens" in name or "v_proj" in name:
        return Kind.Q8_0
    if "layers.1.self_attn.o_proj" in name:
        return Kind.F16
    return Kind.Q4_0 if "down_proj" in name else Kind.Q4_1


@pytest.fixture(scope="module")
def quantized(tiny_model, tmp_path_factory):
    """Model files by recipe."""
    folder = tmp_path_factory.mktemp("gguf")
    names = ("llama", "llama-tied", "llama-biased")
    return {name: write_gguf(folder / f"{name}.gguf", tiny_model(name)[0], mixed) for name in names}


def exact(path, ids):
    source, config = described(path)
    decoder, pool = Decoder(config, load_weights(source, config, "auto")), KvPool(config, 8, 8)
    return decoder.logits(decoder.forward(Batch.build([chunk(ids, 0, len(ids), list(range(8)))], pool), pool))


def test_each_matrix_stays_as_the_file_has_it(quantized, tiny_model):
    weights = gpu_weights(quantized["llama"], "groups")
    model = tiny_model("llama")[0].model
    first, second = weights.layers[0], weights.layers[1]
    assert isinstance(first.qkv, SideBySide)
    forms = [(part.matrix.form, part.matrix.bits, part.matrix.outputs) for part in first.qkv.parts]
    assert forms == [("minima", 4, 96), ("symmetric", 8, 32)]
    assert isinstance(first.o, Grouped) and isinstance(second.o, Linear)
    assert (first.gate_up.matrix.form, first.down.matrix.form) == ("minima", "symmetric")
    stacked = torch.cat((model.layers[0].mlp.gate_proj.weight, model.layers[0].mlp.up_proj.weight))
    assert (dequantize(first.gate_up.matrix) - stacked).abs().max() < stacked.abs().max() / 8
    assert torch.equal(second.o.weight, model.layers[1].self_attn.o_proj.weight.half().float())


@pytest.mark.parametrize(
    "name",
    ["llama", *(pytest.param(name, marks=pytest.mark.long) for name in ("llama-tied", "llama-biased"))],
)
def test_groups_give_what_the_exact_path_gives_on_the_same_values(quantized, name):
    path = quantized[name]
    ids = prompt(320, 21)
    model = gpu_model(path, "groups")
    table = [7, 30, 2]
    parts = [model.logits(model.forward([chunk(ids, start, stop, table)])) for start, stop in ((0, 20), (20, 21))]
    torch.testing.assert_close(torch.cat(parts), exact(path, ids), atol=1e-4, rtol=0)


@pytest.mark.usefixtures("row_scaled_products")
@pytest.mark.parametrize("name", ["llama", pytest.param("qwen3-biased", marks=pytest.mark.long)])
def test_fp8_products_are_near(tiny_model, name):
    folder = tiny_model(name)[1]
    ids = prompt(320, 12)
    model = gpu_model(folder, "fp8")
    layer = gpu_weights(folder, "fp8").layers[0]
    assert all(isinstance(product, Fp8) for product in layer.products)
    logits = model.logits(model.forward([chunk(ids, 0, 12, [3])]))
    expected = exact(folder, ids)
    error = (logits - expected).norm() / expected.norm()
    assert 1e-3 < error < 0.3  # random weights amplify what rounding to 4 bits loses; any real mistake is above 1


@pytest.mark.parametrize("form", ["dense", "groups", "fp8"])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_memory_is_known_before_anything_is_loaded(quantized, tiny_model, form, ranks, dtype):
    """The first rank's bytes are predicted exactly."""
    for path in (*quantized.values(), tiny_model("qwen3-biased")[1]):
        source, config = described(path)
        arithmetic = GpuArithmetic(form, dtype)
        weights = load(source, config, "auto", GpuAssembly(arithmetic, CPU, 0, ranks))
        assert weights_bytes(source, config, arithmetic, ranks=ranks) == weights.nbytes
        assert load(source, config, "auto", GpuAssembly(arithmetic, CPU, ranks - 1, ranks)).nbytes <= weights.nbytes


@pytest.mark.parametrize("kind", [Kind.Q5_0, Kind.IQ4_NL, Kind.TQ1_0, Kind.MXFP4, Kind.Q6_K, Kind.IQ2_S, Kind.Q5_1])
def test_types_whose_numbers_8_bit_groups_hold_become_those_and_others_dense(tmp_path, kind):
    path, expected = typed(tmp_path / "m.gguf", kind)
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    stacked = torch.cat([expected[f"model.layers.0.{name}.weight"] for name in names])
    source, config = described(path)
    arithmetic = choose_gpu_arithmetic(source, config, CPU)
    for rank, ranks in ((0, 1), (1, 2)):
        weights = load(source, config, "auto", GpuAssembly(arithmetic, CPU, rank, ranks))
        assert weights.nbytes == weights_bytes(source, config, arithmetic, ranks=ranks)
    weights = load(source, config, "auto", GpuAssembly(arithmetic, CPU))
    qkv, grouped = weights.layers[0].qkv, kind.name in GROUPED
    assert isinstance(qkv, Grouped if grouped else Linear) and isinstance(weights.head, Grouped if grouped else Linear)
    assert torch.equal(dequantize(qkv.matrix) if grouped else qkv.weight, stacked)
    assert torch.equal(weights.embedding, expected["model.embed_tokens.weight"])


def test_groups_that_a_rank_would_cut_are_unpacked(quantized):
    """Half of 96 columns of `down` is a group and a half."""
    parts = [gpu_weights(quantized["llama"], "groups", rank, 2).layers[0] for rank in range(2)]
    whole = dequantize(gpu_weights(quantized["llama"], "groups").layers[0].down.matrix)
    assert all(isinstance(part.down, Linear) and isinstance(part.o, Grouped) for part in parts)
    torch.testing.assert_close(torch.cat([part.down.weight for part in parts], 1), whole)


def test_a_vocabulary_that_does_not_divide_is_filled_with_zeros(quantized):
    parts = [gpu_weights(quantized["llama"], "groups", rank, 4) for rank in range(4)]
    assert len({tuple(part.embedding.shape) for part in parts}) == 1
    whole = gpu_weights(quantized["llama"], "groups")
    assert torch.equal(torch.cat([part.embedding for part in parts])[:320], whole.embedding)


def test_the_choice_follows_the_file_and_what_is_asked(quantized, tiny_model, monkeypatch):
    gguf, folder = described(quantized["llama"]), described(tiny_model("llama")[1])
    assert choose_gpu_arithmetic(*gguf, CPU).weights == "groups"
    assert choose_gpu_arithmetic(*gguf, CPU, weights="dense").weights == "dense"
    assert choose_gpu_arithmetic(*gguf, CPU, load_format="dummy").weights == "dense"
    gpu = torch.device("cuda", 0)
    plain = choose_gpu_arithmetic(*folder, gpu, kv="fp8")
    assert (plain.weights, plain.dtype, plain.fp8_kv) == ("dense", torch.bfloat16, True)
    assert choose_gpu_arithmetic(folder[0], replace(folder[1], dtype="float16"), gpu).dtype == torch.float16
    assert choose_gpu_arithmetic(*folder, CPU).dtype == torch.float32
    assert "embed_tokens" in next(iter(stored_kinds(*gguf, "auto")))
    monkeypatch.setattr("engine.gpu.formats.refusal", lambda device: "this GPU has none")
    with pytest.raises(ModelError, match="fp8 weights were asked for: this GPU has none"):
        choose_gpu_arithmetic(*folder, CPU, weights="fp8")
    assert fp8.refusal(CPU) is None


def test_blocks_of_other_arithmetic_have_other_names():
    one = GpuArithmetic("dense", torch.bfloat16)
    names = {
        one.kv_format(),
        one.kv_format(2),
        replace(one, fp8_kv=True).kv_format(),
        replace(one, weights="groups").kv_format(),
        replace(one, dtype=torch.float16).kv_format(),
    }
    assert len(names) == 5
