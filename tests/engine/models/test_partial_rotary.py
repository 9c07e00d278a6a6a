"""Heads of which only the first dimensions are rotated, against transformers' Phi-3: Llama with that and with fused projections."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import save_file

from configs.model.source import resolve_model
from engine.cpu.batch import Batch
from engine.cpu.decoder import Decoder
from engine.cpu.kv_pool import KvPool
from engine.cpu.weights import load_weights
from engine.gpu.formats import GPU
from engine.models.families import llama
from engine.models.registry import read_config
from engine.sequence_input import SequenceInput

IDS = [7, 31, 5, 50, 12, 44, 9, 6, 25, 3, 17, 18, 9, 0, 2, 40]
SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 51,
    "num_key_value_heads": 1, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
}  # fmt: skip
FUSED = {"qkv_proj": {"q_proj": 32, "k_proj": 16, "v_proj": 16}, "gate_up_proj": {"gate_proj": 48, "up_proj": 48}}


def unfused(name, weight):
    """The tensors that are one in Phi-3."""
    for whole, parts in FUSED.items():
        if whole in name:
            rows = weight.split([*parts.values()])
            return {name.replace(whole, part): own.clone() for part, own in zip(parts, rows, strict=True)}
    return {name: weight}


@pytest.fixture
def phi(tmp_path, monkeypatch):
    """(transformers' model, our source, its description), which is read as Llama's with the factor."""
    rope = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
    model = transformers.Phi3ForCausalLM(transformers.Phi3Config(rope_parameters=rope, pad_token_id=0, **SHAPE)).eval()
    generator, tensors = torch.Generator().manual_seed(3), {}
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3, generator=generator)
        tensors |= unfused(name, parameter.data)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | {"model_type": "llama", "rope_parameters": rope}))
    rules = replace(llama.FAMILY.hf, rotary_factor=1.0)
    monkeypatch.setattr(llama, "FAMILY", replace(llama.FAMILY, hf=rules, gguf=None, gguf_pairs_adjacent=False))
    source = resolve_model(str(tmp_path))
    return model, source, read_config(source)


def test_the_exact_decoder_rotates_a_part(phi):
    model, source, config = phi
    assert (config.rotary_dim, config.rotated, config.head_dim) == (8, 8, 16)
    decoder, pool = Decoder(config, load_weights(source, config, "auto")), KvPool(config, 2, 16)
    found = []
    for part in (range(9), range(9, len(IDS))):
        step = SequenceInput(token_ids=[IDS[at] for at in part], start=part.start, block_table=[1])
        found.append(decoder.logits(decoder.forward(Batch.build([step], pool), pool)))
    with torch.inference_mode():
        expected = model(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(torch.cat(found), expected, atol=1e-4, rtol=0)


def test_other_kernels_refuse_it_by_name(phi):
    assert GPU.lack(phi[2]) == "the GPU kernels compute no rotary_dim, which llama models have (8)"
