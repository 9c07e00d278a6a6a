"""Loads a model for a CPU: its weights, its KV pool, and the arithmetic between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch

from configs.model.config import ModelConfig
from configs.model.source import ModelSource
from engine.cpu.decoder import Decoder
from engine.cpu.formats import Arithmetic
from engine.cpu.huge_pages import HugePages
from engine.cpu.kv_pool import KvPool, PackedKvPool
from engine.cpu.model import ExactModel, FastModel, Model
from engine.cpu.packed_weights import PACKED_CLASSES, assemble_packed
from engine.cpu.shared_weights import Placer, in_place
from engine.cpu.tensor_tree import tensors_of
from engine.cpu.weights import WEIGHT_CLASSES, load_weights
from engine.loading import load
from engine.loading.progress import Tell

T = TypeVar("T")


class WeightsKeeper(Protocol):
    """Where weights come to lie."""

    def __call__(self, pack: Callable[[Placer], T], classes: Sequence[type], /) -> T:
        """What `pack` makes by way of the place that it is given, and of `classes`."""
        ...


@dataclass(frozen=True, slots=True)
class PoolSize:
    """A KV pool: `blocks` of `block_size` tokens, and the longest sequence in it."""

    blocks: int
    block_size: int
    context: int


def own_weights(pack: Callable[[Placer], T], classes: Sequence[type]) -> T:
    """A `WeightsKeeper` for a model that nobody else has in memory."""
    del classes
    weights = pack(in_place)
    HugePages(tensors_of(weights)).begin()
    return weights


def load_model(
    source: ModelSource,
    config: ModelConfig,
    arithmetic: Arithmetic,
    load_format: str,
    size: PoolSize,
    *,
    keep: WeightsKeeper = own_weights,
    tell: Tell | None = None,
) -> Model:
    """Load a model, to be computed by as many threads as torch has.

    Raises:
        ModelError: the files cannot be loaded.
    """
    if config.implementation == "transformers":
        from engine.cpu.fallback.transformers_decoder import TransformersDecoder

        pool = KvPool(config, size.blocks, size.block_size)
        return ExactModel(TransformersDecoder(source, config, load_format, pool), pool)
    if arithmetic.precision == "exact":
        weights = keep(lambda place: load_weights(source, config, load_format, place=place, tell=tell), WEIGHT_CLASSES)
        return ExactModel(Decoder(config, weights), KvPool(config, size.blocks, size.block_size))
    packed = keep(
        lambda place: load(source, config, load_format, partial(assemble_packed, place=place), tell), PACKED_CLASSES
    )
    return FastModel(
        config,
        packed,
        PackedKvPool(config, size.blocks, size.block_size),
        arithmetic=arithmetic,
        context=size.context,
        threads=torch.get_num_threads(),
    )
