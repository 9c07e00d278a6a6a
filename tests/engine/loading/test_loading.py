"""Weights: each storage type, each file layout, and refusals that name the tensor."""

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file

from configs.model.source import ModelError, resolve_model
from engine.cpu.batch import Batch
from engine.cpu.decoder import Decoder
from engine.cpu.kv_pool import KvPool
from engine.cpu.weights import load_weights
from engine.models.layout import weights_bytes
from engine.models.registry import read_config
from engine.sequence_input import SequenceInput
from tests import tiny_models


def loaded(path, load_format="auto"):
    source = resolve_model(str(path))
    config = read_config(source)
    return config, load_weights(source, config, load_format)


def logits(config, weights, length=40):
    decoder, pool = Decoder(config, weights), KvPool(config, 8, 8)
    ids = list(range(5, 5 + length))
    part = SequenceInput(token_ids=ids, start=0, block_table=list(range(8)))
    return decoder.logits(decoder.forward(Batch.build([part], pool), pool))


def reference(model, length=40):
    with torch.inference_mode():
        return model(torch.arange(5, 5 + length)[None]).logits[0]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


# --- safetensors -----------------------------------------------------------------------------------------------------


def test_shards_are_one_model(tiny_model, tmp_path):
    model, _ = tiny_model("qwen3")
    tiny_models.save(model, tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    close(logits(*loaded(tmp_path)), reference(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_exactly(tiny_model, tmp_path, dtype):
    model, _ = tiny_model("llama")
    tiny_models.save(tiny_models.build("llama").to(dtype), tmp_path)
    config, weights = loaded(tmp_path)
    stored = model.model.layers[1].mlp.down_proj.weight
    assert torch.equal(weights.layers[1].down.weight, stored.to(dtype).float())
    assert config.dtype == str(dtype).removeprefix("torch.")


def test_projections_are_stacked_and_a_tied_head_is_shared(tiny_model):
    model, folder = tiny_model("llama-tied")
    config, weights = loaded(folder)
    layer, theirs = weights.layers[2], model.model.layers[2]
    attention = theirs.self_attn
    stacked = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert torch.equal(layer.qkv.weight, stacked)
    assert torch.equal(layer.gate_up.weight, torch.cat([theirs.mlp.gate_proj.weight, theirs.mlp.up_proj.weight]))
    assert weights.head.data_ptr() == weights.embedding.data_ptr()
    assert config.tie_word_embeddings


def test_fp32_matrices_stay_in_the_mapped_file(tiny_model):
    _, folder = tiny_model("llama")
    _, weights = loaded(folder)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    mapped = [line.split()[0] for line in maps if str(folder) in line]
    ranges = [tuple(int(end, 16) for end in span.split("-")) for span in mapped]
    for tensor in (weights.embedding, weights.head, weights.layers[0].o.weight, weights.layers[0].down.weight):
        assert any(low <= tensor.data_ptr() < high for low, high in ranges)


def rewritten(model, folder, change):
    """The model's folder with its tensors changed by `change(dict)`."""
    tiny_models.save(model, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "lacks tensors: model.layers.1.mlp.up_proj.weight;"),
        (lambda t: t.pop("lm_head.weight"), "lacks tensors: lm_head.weight"),
        (lambda t: t.update(extra=torch.zeros(2)), "holds unknown tensors: extra;"),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(63)}),
            r"model\.norm\.weight is \[63\], not \[64\]",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.int32)}),
            r"model\.norm\.weight is stored as I32",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tiny_model, tmp_path, change, message):
    model, _ = tiny_model("llama")
    with pytest.raises(ModelError, match=message):
        loaded(rewritten(model, tmp_path, change))


def test_what_the_description_implies_is_not_needed(tiny_model, tmp_path):
    """Old checkpoints store rotary frequencies, and a tied head a second time."""
    model, _ = tiny_model("llama-tied")

    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    close(logits(*loaded(rewritten(model, tmp_path, add))), reference(model))


def test_a_folder_without_tensors_is_refused_but_for_random_ones(tiny_model, tmp_path):
    _, folder = tiny_model("llama")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"holds neither model\.safetensors nor .*--load-format dummy"):
        loaded(tmp_path)
    assert logits(*loaded(tmp_path, "dummy")).isfinite().all()


@pytest.mark.parametrize("place", ["missing.safetensors", "../elsewhere.safetensors", 5])
def test_an_index_that_names_no_shard_of_the_folder_is_refused(tiny_model, tmp_path, place):
    _, folder = tiny_model("llama")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(ModelError, match=r"lacks shards|no weight_map"):
        loaded(tmp_path)


def test_a_cut_off_file_is_refused(tiny_model, tmp_path):
    model, _ = tiny_model("llama")
    tiny_models.save(model, tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="download it again"):
        loaded(tmp_path)


def test_a_format_that_does_not_fit_the_files_is_refused(tiny_model, smollm2_source):
    _, folder = tiny_model("llama")
    with pytest.raises(ModelError, match="--load-format gguf does not fit"):
        loaded(folder, "gguf")
    with pytest.raises(ModelError, match="--load-format safetensors does not fit"):
        loaded(smollm2_source.path, "safetensors")


# --- GGUF ------------------------------------------------------------------------------------------------------------

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name):
    stem, suffix = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        layer, part = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{NAMES[part]}.{suffix}"
    return f"{NAMES[stem]}.{suffix}"


def reordered(rows, heads):
    """llama.cpp's order of the rows of q and k: the two halves of a rotary pair side by side."""
    dim = rows.shape[0] // heads
    return rows.reshape(heads, 2, dim // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def add_sizes(writer, config):
    """What llama.cpp's converter says of every model. Returns the width of a head."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    return head_dim


def write_gguf(path, model, kind=Kind.F32, tensors=None, finish=lambda writer: None, vectors=Kind.F32, **split):
    """The model as llama.cpp's converter lays it out; matrices as `kind` (or as it says for a name), the rest as `vectors`.

    `split` is how `GGUFWriter` is to split it, if at all: then there is no file at `path`, but parts beside it.
    """
    config = model.config
    arch = config.model_type
    writer = gguf.GGUFWriter(path, arch, **split)
    add_sizes(writer, config)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    finish(writer)
    tied = config.tie_word_embeddings
    for name, tensor in (tensors or model.state_dict()).items():
        if tied and name == "lm_head.weight":
            continue
        values = tensor.numpy()
        if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            values = reordered(values, heads)
        stored = kind(name) if callable(kind) else kind
        add(writer, gguf_name(name), values, stored if values.ndim > 1 else vectors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer, name, values, kind):
    writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)


@pytest.mark.parametrize("name", ["llama", "llama-tied", "llama-biased", "llama-one-kv-head", "qwen2", "qwen3"])
def test_a_gguf_computes_what_its_original_does(tiny_model, tmp_path, name):
    model, _ = tiny_model(name)
    close(logits(*loaded(write_gguf(tmp_path / "m.gguf", model))), reference(model))


def test_rotary_factors_of_a_gguf_are_the_scaling_of_its_original(tmp_path, tiny_model):
    """llama.cpp stores Llama 3's scaling as divisors of the frequencies."""
    model, _ = tiny_model("llama-llama3")
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, 16, 2) / 16)
    factors = frequencies / model.model.rotary_emb.inv_freq
    assert factors.max() > 7

    def finish(writer):
        writer.add_tensor("rope_freqs.weight", factors.numpy())

    path = write_gguf(tmp_path / "m.gguf", model, finish=finish)
    close(logits(*loaded(path)), reference(model))
    plain = write_gguf(tmp_path / "plain.gguf", model)
    assert (logits(*loaded(plain)) - reference(model)).abs().max() > 0.1


QUANTIZABLE = [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1]


@pytest.mark.parametrize("kind", QUANTIZABLE)
def test_a_quantized_gguf_computes_with_the_dequantized_values(tiny_model, tmp_path, kind):
    """Against transformers on the values that the gguf package says are stored; q and k rows included."""
    model, _ = tiny_model("llama")
    path = write_gguf(tmp_path / "m.gguf", model, kind)
    rounded = tiny_models.build("llama")
    for name, parameter in rounded.named_parameters():
        if parameter.dim() > 1:
            stored = gguf.quants.quantize(parameter.detach().numpy(), kind)
            parameter.data = torch.from_numpy(gguf.quants.dequantize(stored, kind)).view(parameter.shape).clone()
        assert parameter.isfinite().all(), name
    config, weights = loaded(path)
    close(logits(config, weights), reference(rounded))
    assert (logits(config, weights) - reference(model)).abs().max() > 1e-3


def test_gguf_tensors_that_do_not_fit_are_named(tiny_model, tmp_path):
    model, _ = tiny_model("llama")
    state = model.state_dict()
    less = {name: tensor for name, tensor in state.items() if name != "model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(ModelError, match=r"lacks tensors: model\.layers\.1\.mlp\.up_proj\.weight"):
        loaded(write_gguf(tmp_path / "a.gguf", model, tensors=less))
    wrong = state | {"model.norm.weight": torch.zeros(60)}
    with pytest.raises(ModelError, match=r"model\.norm\.weight is \[60\], not \[64\]"):
        loaded(write_gguf(tmp_path / "b.gguf", model, tensors=wrong))
    extra = write_gguf(
        tmp_path / "c.gguf", model, finish=lambda writer: writer.add_tensor("adapter.weight", np.ones(4, np.float32))
    )
    with pytest.raises(ModelError, match=r"unknown tensors: adapter\.weight"):
        loaded(extra)


def test_a_cut_off_gguf_is_refused(tiny_model, tmp_path):
    model, _ = tiny_model("llama")
    path = write_gguf(tmp_path / "m.gguf", model)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ModelError, match="cut off within"):
        loaded(path)


# --- random weights, sizes -------------------------------------------------------------------------------------------


def test_random_weights_are_the_same_each_time_and_not_all_alike(tiny_model):
    _, folder = tiny_model("qwen2")
    config, weights = loaded(folder, "dummy")
    _, again = loaded(folder, "dummy")
    assert torch.equal(weights.layers[1].qkv.weight, again.layers[1].qkv.weight)
    assert not torch.equal(weights.layers[0].qkv.weight, weights.layers[1].qkv.weight)
    assert logits(config, weights).std() > 0


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen3-biased"])
def test_the_size_is_known_before_loading(tiny_model, name):
    model, folder = tiny_model(name)
    config = read_config(resolve_model(str(folder)))
    assert weights_bytes(config) == 4 * sum(parameter.numel() for parameter in model.parameters())
    assert weights_bytes(replace(config, tie_word_embeddings=False)) >= weights_bytes(config)
