"""From named tensors to `Weights`: fused projections, tied head, everything fp32, every value copied at most once."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from configs.model.config import ModelConfig
from engine.loading.layout import EMBEDDING, FINAL_NORM, HEAD, Shape
from engine.loading.weights import LayerWeights, Weights
from kernels.cpu.packing import Kind


class TensorReader(Protocol):
    """A model's tensors by their Hugging Face names.

    Contract: `shapes` is known before any data is read. `read_into` and `whole` may be called from several threads. What
    `whole` returns is never written to and stays valid for ever.
    """

    shapes: Mapping[str, Shape]
    rope_factors: Tensor | None  # see `engine.models.rope`

    def stored(self, name: str) -> tuple[Kind, Tensor] | None:
        """The matrix as groups of 32 columns, uint8 [rows, bytes], and how they are stored; None if it is stored otherwise."""
        ...

    def read_into(self, name: str, out: Tensor) -> None:
        """Fill `out`: contiguous, of the tensor's shape, in any float type on any device."""
        ...

    def whole(self, name: str) -> Tensor | None:
        """The tensor where it lies, if it is fp32 already, else None."""
        ...


Loaded_co = TypeVar("Loaded_co", covariant=True)


class Assemble(Protocol[Loaded_co]):
    """Makes a model's weights, in the form one kind of arithmetic wants, of its tensors."""

    def __call__(self, reader: TensorReader, config: ModelConfig) -> Loaded_co:
        """Read every tensor the model has."""
        ...


def assemble(reader: TensorReader, config: ModelConfig) -> Weights:
    """Read all weights, layers side by side on all of torch's threads."""
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        embedding = threads.submit(read, reader, EMBEDDING)
        layers = list(threads.map(partial(_layer, reader, config), range(config.layers)))
        head = embedding if config.tie_word_embeddings else threads.submit(read, reader, HEAD)
        return Weights(
            embedding=embedding.result(),
            layers=layers,
            final_norm=read(reader, FINAL_NORM),
            head=head.result(),
            rope_factors=reader.rope_factors,
        )


def _layer(reader: TensorReader, config: ModelConfig, index: int) -> LayerWeights:
    prefix = f"model.layers.{index}."
    attention, mlp = prefix + "self_attn.", prefix + "mlp."
    qkv = [attention + name for name in ("q_proj", "k_proj", "v_proj")]
    gate_up = [mlp + name for name in ("gate_proj", "up_proj")]
    return LayerWeights(
        input_norm=read(reader, prefix + "input_layernorm.weight"),
        qkv=_stacked(reader, [name + ".weight" for name in qkv]),
        qkv_bias=_stacked(reader, [name + ".bias" for name in qkv]) if config.qkv_bias else None,
        qk_norm=_qk_norm(reader, config, attention) if config.qk_norm else None,
        o=read(reader, attention + "o_proj.weight"),
        o_bias=read(reader, attention + "o_proj.bias") if config.o_bias else None,
        post_norm=read(reader, prefix + "post_attention_layernorm.weight"),
        gate_up=_stacked(reader, [name + ".weight" for name in gate_up]),
        gate_up_bias=_stacked(reader, [name + ".bias" for name in gate_up]) if config.mlp_bias else None,
        down=read(reader, mlp + "down_proj.weight"),
        down_bias=read(reader, mlp + "down_proj.bias") if config.mlp_bias else None,
    )


def read(reader: TensorReader, name: str) -> Tensor:
    """One tensor in fp32: where it lies, or else a copy."""
    whole = reader.whole(name)
    if whole is not None:
        return whole
    out = torch.empty(reader.shapes[name])
    reader.read_into(name, out)
    return out


@contextmanager
def in_fp32(out: Tensor) -> Iterator[Tensor]:
    """`out` itself where it is fp32 on this machine's memory, else a buffer that is copied to it at the end."""
    if out.dtype == torch.float32 and out.device.type == "cpu":
        yield out
        return
    buffer = torch.empty(out.shape)
    yield buffer
    out.copy_(buffer)


def _stacked(reader: TensorReader, names: Sequence[str]) -> Tensor:
    shapes = [reader.shapes[name] for name in names]
    out = torch.empty((sum(shape[0] for shape in shapes), *shapes[0][1:]))
    for name, part in zip(names, torch.split(out, [shape[0] for shape in shapes]), strict=True):
        reader.read_into(name, part)
    return out


def _qk_norm(reader: TensorReader, config: ModelConfig, attention: str) -> Tensor:
    """One weight row per head, so that queries and keys are normed in one call."""
    queries = read(reader, attention + "q_norm.weight").expand(config.heads, -1)
    keys = read(reader, attention + "k_norm.weight").expand(config.kv_heads, -1)
    return torch.cat((queries, keys))
