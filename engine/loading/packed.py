"""From named tensors to the weights of the int8 kernels: 4- and 8-bit groups as the file has them, all else rounded to 8 bits."""

from dataclasses import dataclass

from torch import Tensor

from configs.model.config import ModelConfig
from engine.loading.assemble import TensorReader, read
from engine.loading.layout import EMBEDDING, FINAL_NORM, HEAD
from kernels.cpu.native import NativeLayer
from kernels.cpu.packing import PackedMatrix, pack_float, pack_gguf


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeights:
    """A whole model. `head` is `embedding` itself where the model ties them. Holds nothing of the file."""

    embedding: PackedMatrix
    layers: list[NativeLayer]
    final_norm: Tensor
    head: PackedMatrix
    rope_factors: Tensor | None


def assemble_packed(reader: TensorReader, config: ModelConfig) -> PackedWeights:
    """Read all weights. One matrix at a time is in memory twice."""
    embedding = _matrix(reader, EMBEDDING)
    return PackedWeights(
        embedding=embedding,
        layers=[_layer(reader, config, index) for index in range(config.layers)],
        final_norm=read(reader, FINAL_NORM).clone(),
        head=embedding if config.tie_word_embeddings else _matrix(reader, HEAD),
        rope_factors=reader.rope_factors,
    )


def _layer(reader: TensorReader, config: ModelConfig, index: int) -> NativeLayer:
    prefix = f"model.layers.{index}."
    attention, mlp = prefix + "self_attn.", prefix + "mlp."

    def vector(name: str, has: bool = True) -> Tensor | None:
        return read(reader, name).clone() if has else None

    def norm(name: str) -> Tensor:
        return read(reader, prefix + name + ".weight").clone()

    return NativeLayer(
        q=_matrix(reader, attention + "q_proj.weight"),
        k=_matrix(reader, attention + "k_proj.weight"),
        v=_matrix(reader, attention + "v_proj.weight"),
        o=_matrix(reader, attention + "o_proj.weight"),
        gate=_matrix(reader, mlp + "gate_proj.weight"),
        up=_matrix(reader, mlp + "up_proj.weight"),
        down=_matrix(reader, mlp + "down_proj.weight"),
        input_norm=norm("input_layernorm"),
        post_norm=norm("post_attention_layernorm"),
        q_norm=vector(attention + "q_norm.weight", config.qk_norm),
        k_norm=vector(attention + "k_norm.weight", config.qk_norm),
        q_bias=vector(attention + "q_proj.bias", config.qkv_bias),
        k_bias=vector(attention + "k_proj.bias", config.qkv_bias),
        v_bias=vector(attention + "v_proj.bias", config.qkv_bias),
        o_bias=vector(attention + "o_proj.bias", config.o_bias),
        gate_bias=vector(mlp + "gate_proj.bias", config.mlp_bias),
        up_bias=vector(mlp + "up_proj.bias", config.mlp_bias),
        down_bias=vector(mlp + "down_proj.bias", config.mlp_bias),
        window=(config.sliding_window or 0) if config.sliding_layers[index] else 0,
    )


def _matrix(reader: TensorReader, name: str) -> PackedMatrix:
    stored = reader.stored(name)
    if stored is not None:
        kind, rows = stored
        return pack_gguf(rows, kind)
    return pack_float(read(reader, name))
