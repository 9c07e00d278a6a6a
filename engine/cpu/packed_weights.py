"""The weights of the int8 kernels: the file's own blocks, and 8-bit groups for whatever has none."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from configs.model.config import ModelConfig
from engine.cpu.file_packing import Tiles, matrices, pack, tables
from engine.cpu.formats import FAST
from engine.cpu.shared_weights import Placer, in_place
from engine.loading.reader import TensorReader, read
from engine.models.registry import family_of
from kernels.cpu.layouts import packed_size
from kernels.cpu.native import NORMS, NativeLayer
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
    """Read all weights, on as many threads as torch has; each has one layer at a time in memory twice if it is moved to its place.

    Args:
        reader: of the model's files.
        config: their description.
        place: moves what is packed.

    Raises:
        ModelError: the C++ kernels do not compute all that the model has, or a file is cut off.
    """
    FAST.check(config)
    family = family_of(config)

    def table(name: str) -> PackedMatrix:
        return place(_matrix(reader, name, pack([name], reader.blocks)))

    def layer(index: int) -> NativeLayer:
        return place(_layer(reader, config, index, pack(matrices(config, index), reader.blocks)))

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        placed = [threads.submit(table, name) for name in tables(config)]
        layers = list(threads.map(layer, range(config.layers)))
        embedding, head = placed[0].result(), placed[-1].result()
    return PackedWeights(
        embedding=embedding,
        layers=layers,
        final_norm=read(reader, family.tensor("final_norm").hf).clone(),
        head=head,
        rope_factors=reader.rope_factors,
    )


def _layer(reader: TensorReader, config: ModelConfig, index: int, packed: Mapping[str, Tiles]) -> NativeLayer:
    family = family_of(config)

    def matrix(role: str) -> PackedMatrix:
        return _matrix(reader, family.tensor(role, index).hf, packed)

    def norm(role: str) -> Tensor | None:
        if not (family.has(role) and family.tensor(role, index).present(config)):
            return None
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
        **{role: norm(role) for role in NORMS},
        q_bias=bias("q"),
        k_bias=bias("k"),
        v_bias=bias("v"),
        o_bias=bias("o"),
        gate_bias=bias("gate"),
        up_bias=bias("up"),
        down_bias=bias("down"),
        window=(config.sliding_window or 0) if config.sliding_layers[index] else 0,
    )


def _matrix(reader: TensorReader, name: str, packed: Mapping[str, Tiles]) -> PackedMatrix:
    """In the file's own blocks; a type that the kernels do not know in 8-bit groups, rounded unless those hold its numbers."""
    matrix = _of_tiles(packed[name]) if name in packed else _grouped(reader, name)
    reader.forget(name)
    return matrix


def _of_tiles(tiles: Tiles) -> PackedMatrix:
    shape = packed_size(tiles.kind, tiles.outputs, tiles.columns)
    records = torch.frombuffer(tiles.memory, dtype=torch.uint8, count=prod(shape), offset=tiles.start)
    return PackedMatrix(records.view(shape), tiles.outputs, tiles.columns, tiles.kind)


def _grouped(reader: TensorReader, name: str) -> PackedMatrix:
    kind = reader.group_kind(name)
    return pack_float(read(reader, name)) if kind is None else pack_gguf(reader.groups(name), kind)
