"""The weights of the exact decoder, whole or one rank's shard: fp32, projections fused, every value copied at most once."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from configs.model.config import ModelConfig
from configs.model.source import ModelSource
from engine.cpu.formats import EXACT
from engine.cpu.shared_weights import Placer, in_place
from engine.linear import Linear, Product
from engine.loading import load
from engine.loading.progress import Tell
from engine.loading.reader import TensorReader, read
from engine.models.family import Axis, Family, NamedTensor, Part
from engine.models.registry import family_of
from engine.tensor_parallel.shards import Shard

_QKV, _GATE_UP = ("q", "k", "v"), ("gate", "up")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One layer, fp32. Products' sizes are [out, in]; q, k, v are stacked along outputs in this order, then gate and up.

    Sizes are those of one rank (`engine.tensor_parallel.shards.split_config`); `hidden` is whole everywhere. What o and down give
    is this rank's part of a sum, and only the first rank has their biases.
    """

    input_norm: Tensor | None  # [hidden]
    qkv: Product  # [(heads + 2 * kv_heads) * dim, hidden]
    qk_norm: Tensor | None  # [heads + kv_heads, dim]: the queries' norm for each query head, then the keys'
    wide_qk_norm: Tensor | None  # [(heads + kv_heads) * dim]: of all queries as one vector, then of all keys
    o: Product  # [hidden, heads * dim]
    after_attention_norm: Tensor | None  # [hidden]; of what o gives, after the sum
    post_norm: Tensor | None  # [hidden]
    gate_up: Product  # [2 * intermediate, hidden]
    down: Product  # [hidden, intermediate]
    after_mlp_norm: Tensor | None  # [hidden]; likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A model, or one rank's shard of it, in fp32. `head` is `embedding` itself if the model ties them."""

    embedding: Tensor  # [vocab / ranks, hidden], rounded up and padded with zeros
    layers: list[LayerWeights]
    final_norm: Tensor  # [hidden]
    head: Tensor  # [vocab / ranks, hidden], likewise
    rope_factors: Tensor | None = None  # fp32 [dim / 2], for `engine.models.rope.Rope`


WEIGHT_CLASSES = (Weights, LayerWeights, Linear)  # what they are made of


def load_weights(
    source: ModelSource,
    config: ModelConfig,
    load_format: str,
    *,
    rank: int = 0,
    size: int = 1,
    place: Placer = in_place,
    tell: Tell | None = None,
) -> Weights:
    """Load rank `rank`'s shard of a model that `size` ranks compute.

    Raises:
        ModelError: the files do not fit the description or the format, or the description has what is not computed.
        ValueError: the model cannot be split over `size` ranks.
    """
    return load(source, config, load_format, partial(assemble, shard=Shard.of(config, rank, size), place=place), tell)


def assemble(reader: TensorReader, config: ModelConfig, *, shard: Shard, place: Placer = in_place) -> Weights:
    """Read a shard; the layers are read in parallel, on as many threads as torch has.

    Raises:
        ModelError: the exact decoder does not compute all that the model has.
    """
    EXACT.check(config)
    family = family_of(config)
    reading = _ShardReader(reader, config, family, shard)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        table = threads.submit(lambda: place(reading.part(family.tensor("embedding"))))
        layers = list(threads.map(lambda index: place(reading.layer(index)), range(config.layers)))
        embedding = table.result()
        return Weights(
            embedding=embedding,
            layers=layers,
            final_norm=reading.part(family.tensor("final_norm")),
            head=embedding if config.tie_word_embeddings else place(reading.part(family.tensor("head"))),
            rope_factors=reader.rope_factors,
        )


@dataclass(frozen=True, slots=True)
class _ShardReader:
    """A reader's tensors, cut down to one shard. Used from several threads."""

    reader: TensorReader
    config: ModelConfig
    family: Family
    shard: Shard

    def layer(self, index: int) -> LayerWeights:
        """The weights of one layer."""
        return LayerWeights(
            input_norm=self._optional("input_norm", index),
            qkv=self._linear(_QKV, index, biased=self.config.qkv_bias),
            qk_norm=self._qk_norm(index) if self.config.qk_norm else None,
            wide_qk_norm=self._wide_qk_norm(index) if self.family.has("wide_q_norm") else None,
            o=self._summed("o", index),
            after_attention_norm=self._optional("after_attention_norm", index),
            post_norm=self._optional("post_norm", index),
            gate_up=self._linear(_GATE_UP, index, biased=self.config.mlp_bias),
            down=self._summed("down", index),
            after_mlp_norm=self._optional("after_mlp_norm", index),
        )

    def _optional(self, role: str, index: int) -> Tensor | None:
        return self.part(self.family.tensor(role, index)) if self.family.has(role) else None

    def part(self, tensor: NamedTensor) -> Tensor:
        """This rank's part of a tensor: in place if that is all of it, otherwise a copy that does not hold on to the rest."""
        whole, ranges = read(self.reader, tensor.hf), self.shard.ranges(tensor)
        if tuple(map(len, ranges)) == tuple(whole.shape):
            return whole
        mine = whole[tuple(slice(part.start, part.stop) for part in ranges)]
        out = whole.new_zeros([len(part) for part in ranges])  # a vocabulary that does not divide evenly is padded
        out[tuple(map(slice, mine.shape))] = mine
        return out

    def _stacked(self, roles: Sequence[str], index: int, part: Part = "weight") -> Tensor:
        tensors = [self.family.tensor(role, index, part) for role in roles]
        shapes = [[len(part) for part in self.shard.ranges(tensor)] for tensor in tensors]
        out = torch.empty((sum(shape[0] for shape in shapes), *shapes[0][1:]))
        for tensor, place in zip(tensors, torch.split(out, [shape[0] for shape in shapes]), strict=True):
            if self.reader.shapes[tensor.hf] == tuple(place.shape):
                self.reader.read_into(tensor.hf, place)
            else:
                place.copy_(self.part(tensor))
        return out

    def _linear(self, roles: Sequence[str], index: int, *, biased: bool) -> Linear:
        """Matrices stacked along their outputs."""
        return Linear(self._stacked(roles, index), self._stacked(roles, index, "bias") if biased else None)

    def _summed(self, role: str, index: int) -> Linear:
        """A matrix whose results are summed over the ranks; one of them has the bias."""
        bias = self.family.tensor(role, index, "bias")
        held = self.part(bias) if self.shard.holds(bias) else None
        return Linear(self.part(self.family.tensor(role, index)), held)

    def _qk_norm(self, index: int) -> Tensor:
        """One weight row per head, so that queries and keys are normed in one call."""
        here, dim = self.shard, self.config.head_dim
        queries = self.part(self.family.tensor("q_norm", index)).expand(len(here.axes[Axis.QUERIES]) // dim, -1)
        keys = self.part(self.family.tensor("k_norm", index)).expand(len(here.axes[Axis.KEYS]) // dim, -1)
        return torch.cat((queries, keys))

    def _wide_qk_norm(self, index: int) -> Tensor:
        return torch.cat([self.part(self.family.tensor(role, index)) for role in ("wide_q_norm", "wide_k_norm")])
