"""The weights of the int8 kernels: the file's own blocks, and 8-bit groups for whatever has none."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.model.config import ModelConfig
from engine.cpu.formats import FAST
from engine.cpu.shared_weights import Placer, in_place
from engine.loading.reader import TensorReader, read
from engine.models.registry import family_of
from kernels.cpu.layouts import FORMATS
from kernels.cpu.native import NativeLayer
from kernels.cpu.packing import PackedMatrix, pack_float, pack_gguf


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeights:
    """A whole model. `head` is `embedding` itself if the model ties them. Keeps no part of the file open."""

    embedding: PackedMatrix
    layers: list[NativeLayer]
    final_norm: Tensor
    head: PackedMatrix
    rope_factors: Tensor | None


PACKED_CLASSES = (PackedWeights, NativeLayer, PackedMatrix)  # what they are made of


def assemble_packed(reader: TensorReader, config: ModelConfig, *, place: Placer = in_place) -> PackedWeights:
    """Read all weights, on as many threads as torch has; each has one matrix at a time in memory twice, or one layer if it is moved
    to its place.

    Raises:
        ModelError: the C++ kernels do not compute all that the model has.
    """
    FAST.check(config)
    family = family_of(config)

    def table(role: str) -> PackedMatrix:
        return place(_matrix(reader, family.tensor(role).hf))

    roles = ("embedding",) if config.tie_word_embeddings else ("embedding", "head")
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        tables = [threads.submit(table, role) for role in roles]
        layers = list(threads.map(lambda index: place(_layer(reader, config, index)), range(config.layers)))
        embedding, head = tables[0].result(), tables[-1].result()
    return PackedWeights(
        embedding=embedding,
        layers=layers,
        final_norm=read(reader, family.tensor("final_norm").hf).clone(),
        head=head,
        rope_factors=reader.rope_factors,
    )


def _layer(reader: TensorReader, config: ModelConfig, index: int) -> NativeLayer:
    family = family_of(config)

    def matrix(role: str) -> PackedMatrix:
        return _matrix(reader, family.tensor(role, index).hf)

    def norm(role: str) -> Tensor:
        return read(reader, family.tensor(role, index).hf).clone()

    def bias(role: str) -> Tensor | None:
        tensor = family.tensor(role, index, "bias")
        return read(reader, tensor.hf).clone() if tensor.present(config) else None

    return NativeLayer(
        q=matrix("q"),
        k=matrix("k"),
        v=matrix("v"),
        o=matrix("o"),
        gate=matrix("gate"),
        up=matrix("up"),
        down=matrix("down"),
        input_norm=norm("input_norm"),
        post_norm=norm("post_norm"),
        q_norm=norm("q_norm") if config.qk_norm else None,
        k_norm=norm("k_norm") if config.qk_norm else None,
        q_bias=bias("q"),
        k_bias=bias("k"),
        v_bias=bias("v"),
        o_bias=bias("o"),
        gate_bias=bias("gate"),
        up_bias=bias("up"),
        down_bias=bias("down"),
        window=(config.sliding_window or 0) if config.sliding_layers[index] else 0,
    )


def _matrix(reader: TensorReader, name: str) -> PackedMatrix:
    """In the file's own blocks; a type that the kernels do not know in 8-bit groups, rounded unless those hold its numbers."""
    packed = _packed(reader, name)
    reader.forget(name)
    return packed


def _packed(reader: TensorReader, name: str) -> PackedMatrix:
    stored = reader.blocks(name)
    if stored and stored[0] in FORMATS:
        return pack_gguf(stored[1], stored[0])
    kind = reader.group_kind(name)
    return pack_float(read(reader, name)) if kind is None else pack_gguf(reader.groups(name), kind)
