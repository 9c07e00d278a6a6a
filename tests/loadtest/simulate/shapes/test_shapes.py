"""Models as the cost model sees them, read from their own files: as many parameters as they are known to have."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from configs.model.source import ModelError, resolve_model
from loadtest.simulate.cost import CostModel, Work
from loadtest.simulate.shapes.named import named_model
from loadtest.simulate.specs import ModelSpec, SpecError, load_hardware, load_model

LLAMA_3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}
MIXTRAL = {**LLAMA_3_8B, "model_type": "mixtral", "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2}
QWEN3_30B = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "mlp_only_layers": [],
    "tie_word_embeddings": False,
}
GLM_AIR = {
    "model_type": "glm4_moe",
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 46,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151552,
    "max_position_embeddings": 131072,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 1,
}
SCOUT = {
    **LLAMA_3_8B,
    "model_type": "llama4_text",
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "vocab_size": 202048,
    "num_local_experts": 16,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 1,
}
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}


def model(config: dict[str, object], folder: Path) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps(config))
    return named_model(str(folder))


@pytest.mark.parametrize(
    ("config", "parameters", "active"),
    [
        (LLAMA_3_8B, 8.03e9, 8.03e9),
        (MIXTRAL, 46.7e9, 12.9e9),
        (QWEN3_30B, 30.5e9, 3.35e9),
        (GLM_AIR, 106e9, 13e9),  # a layer for further tokens left out
        (SCOUT, 108e9, 17e9),
        ({**SCOUT, "num_local_experts": 128, "interleave_moe_layer_step": 2}, 400e9, 17e9),
        (GPT2, 124e6, 124e6),
    ],
)
def test_a_model_has_the_parameters_it_is_known_for(config, parameters, active, tmp_path):
    found = model(config, tmp_path)
    tables = (1 if found.tied_head else 2) * found.head_weights
    assert found.layer_weights + tables == pytest.approx(parameters, rel=0.02)
    assert found.active_weights + tables == pytest.approx(active, rel=0.04)
    assert found.read_weights(1) == pytest.approx(found.active_weights)
    assert found.active_weights <= found.read_weights(20) <= found.read_weights(10_000) <= found.layer_weights


def test_a_config_is_what_its_description_says(tmp_path):
    found, described = model(LLAMA_3_8B, tmp_path), load_model("llama-3-8b")
    assert found.name == tmp_path.name
    assert {name for name in ModelSpec.__slots__ if getattr(found, name) != getattr(described, name)} == {"name"}


def test_an_older_model_with_one_head_of_keys(tmp_path):
    assert model({**LLAMA_3_8B, "multi_query": True, "num_kv_heads": 32}, tmp_path).kv_heads == 1


def test_a_model_that_sees_is_its_text_part(tmp_path):
    assert model({"model_type": "x_vl", "vision_config": {}, "text_config": LLAMA_3_8B}, tmp_path).layers == 32


@pytest.mark.parametrize(
    ("quantized", "bits", "compute"),
    [
        ({"quant_method": "fp8"}, 8, "fp8"),
        ({"quant_method": "gptq", "bits": 4}, 4.25, "bf16"),
        ({"quant_method": "mxfp4"}, 4.25, "bf16"),
    ],
)
def test_quantized_weights_take_their_bits(quantized, bits, compute, tmp_path):
    found = model({**LLAMA_3_8B, "quantization_config": quantized}, tmp_path)
    assert (found.weight_bits, found.compute, found.head_bits) == (bits, compute, 16)
    assert model({**LLAMA_3_8B, "torch_dtype": "float32"}, tmp_path).compute == "fp32"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kv_lora_rank": 512}, "multi-head latent attention"),
        ({"mamba_d_state": 16}, r"state spaces \(mamba_d_state\)"),
        ({"decoder_sparse_step": 2}, "experts on some layers"),
        ({"quantization_config": {"quant_method": "magic"}}, "weights by magic are not known"),
        ({"torch_dtype": "int3"}, "weights of type int3"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"num_local_experts": 8}, "num_experts_per_tok is missing"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
    ],
)
def test_what_is_not_modelled_is_refused(change, says, tmp_path):
    with pytest.raises((SpecError, ModelError), match=says):
        model({**LLAMA_3_8B, **change}, tmp_path)


def test_a_file_that_is_none_is_refused(tmp_path):
    for name in ("no.gguf", "no.json"):
        with pytest.raises(ModelError, match="cannot read"):
            named_model(str(tmp_path / name))
    with pytest.raises(SpecError, match="has only"):
        named_model("no-such-model")


def test_the_embedded_file_is_what_its_description_says():
    found, described = named_model(str(resolve_model(None).path)), load_model("smollm2-135m")
    assert found.weight_bits == pytest.approx(described.weight_bits, rel=0.02)
    assert found.head_bits == pytest.approx(described.head_bits, rel=0.01)
    different = {name for name in ModelSpec.__slots__ if getattr(found, name) != getattr(described, name)}
    assert different <= {"name", "weight_bits", "head_bits"}


def test_a_mixture_in_a_gguf_file(tmp_path):
    path = tmp_path / "mix.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv([2, 2])
    writer.add_context_length(256)
    writer.add_expert_count(8)
    writer.add_expert_used_count(2)
    writer.add_tensor("token_embd.weight", np.zeros((100, 64), np.float32))
    writer.add_tensor("blk.0.ffn_gate_exps.weight", np.zeros((8, 128, 64), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = named_model(str(path))
    assert (found.experts, found.experts_per_token, found.kv_heads, found.mlp_matrices) == (8, 2, 2, 3)
    assert (found.weight_bits, found.head_bits, found.compute, found.tied_head) == (16, 32, "bf16", True)
    assert found.layer_weights == 2 * (64 * 16 * (8 + 4) + 8 * 3 * 64 * 128 + 64 * 8)


def test_a_step_of_a_mixture_reads_the_experts_of_its_tokens(tmp_path):
    cost, h200 = CostModel(load_hardware("h200"), model(MIXTRAL, tmp_path)), load_hardware("h200")

    def seconds(tokens: int) -> float:
        return cost.features(Work(tokens))[3]

    mixture = cost.model
    assert seconds(1) == pytest.approx(2 * mixture.active_weights / h200.memory_bytes_per_second)
    assert seconds(1) < seconds(4) < 4 * seconds(1), "some of their experts are the same"
    assert seconds(64) == pytest.approx(2 * mixture.layer_weights / h200.memory_bytes_per_second, rel=0.001)
    assert seconds(8192) == pytest.approx(2 * mixture.active_weights * 8192 / h200.operations_per_second["bf16"])
