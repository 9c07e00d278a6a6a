"""From named tensors to one rank's weights on its GPU, and the memory they will take there, known from headers alone.

Matrices go from the file to the device one by one, in the form they stay in; the host's memory never holds a whole model.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from configs.model.config import ModelConfig
from configs.model.source import ModelSource
from engine.gpu.formats import GPU, GpuArithmetic
from engine.gpu.linear import Fp8, Grouped, SideBySide
from engine.linear import Linear, Product
from engine.loading.reader import TensorReader
from engine.loading.stored import GroupKind, stored_kinds
from engine.models.family import PARTS
from engine.models.registry import family_of
from engine.tensor_parallel.shards import Shard
from kernels.gpu.linear.fp8 import MULTIPLE, Fp8Matrix
from kernels.gpu.linear.quantized import KERNEL_ROWS
from kernels.gpu.linear.quantized_matrix import GROUP_BYTES, from_gguf, packed_bytes
from kernels.gpu.linear.split_sums import PartialSums

_GROUP = 32  # columns of a stored group
_READERS = 4  # layers read at once: enough to keep a disk and the link to the device busy


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLayer:
    """One rank's shard of a layer, ready to call; norms are fp32."""

    input_norm: Tensor
    qkv: Product
    q_norm: Tensor | None  # [dim]
    k_norm: Tensor | None
    o: Product  # its sum over the ranks is the layer's
    after_attention_norm: Tensor | None = None  # of that sum
    post_norm: Tensor
    gate_up: Product
    down: Product  # likewise
    after_mlp_norm: Tensor | None = None

    @property
    def products(self) -> tuple[Product, ...]:
        """The products, in the order they run."""
        return self.qkv, self.o, self.gate_up, self.down


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuWeights:
    """One rank's shard of a model on its device."""

    embedding: Tensor  # [vocabulary of this rank, hidden] in the model's type
    layers: list[GpuLayer]
    final_norm: Tensor
    head: Product
    rope_factors: Tensor | None = None  # fp32 [dim / 2], for `engine.models.rope.Rope`

    @property
    def nbytes(self) -> int:
        """Device memory of matrices and biases; norms are next to nothing."""
        tied = isinstance(self.head, Linear) and self.head.weight is self.embedding
        products = sum(product.nbytes for layer in self.layers for product in layer.products)
        return products + self.embedding.nbytes + (0 if tied else self.head.nbytes)


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows and columns of one matrix that a rank has, and the bias that it adds, if any. Rows past its end are zeros."""

    name: str
    rows: range
    columns: range
    bias: str | None = None
    is_head: bool = False  # or the embedding

    @classmethod
    def of(cls, shard: Shard, role: str, layer: int | None = None) -> "_Part":
        """The shard's part of the matrix with this role."""
        family = family_of(shard.config)
        weight, bias = (family.tensor(role, layer, part) for part in PARTS)
        rows, columns = shard.ranges(weight)
        return cls(weight.hf, rows, columns, bias.hf if shard.holds(bias) else None, is_head=layer is None)


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring parts that are held the same way, stacked; `form` is a kind of groups, `dense` or `fp8`."""

    form: str
    parts: tuple[_Part, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """[outputs, columns] of the stack."""
        return sum(len(part.rows) for part in self.parts), len(self.parts[0].columns)

    def nbytes(self, dtype: torch.dtype) -> int:
        """Bytes on the device."""
        outputs, columns = self.shape
        biases = outputs * dtype.itemsize if self.parts[0].bias else 0
        if self.form == "dense":
            return outputs * columns * dtype.itemsize + biases
        if self.form == "fp8":
            return outputs * (columns + 4) + biases
        return packed_bytes(outputs, columns, 8 if self.form == "Q8_0" else 4, self.form == "Q4_1") + biases


class GpuAssembly:
    """Makes one rank's weights (`engine.loading.load` calls it).

    Args:
        arithmetic: says in which form.
        device: where they go.
        rank: whose shard.
        size: of the group that computes the model.
    """

    def __init__(self, arithmetic: GpuArithmetic, device: torch.device, rank: int = 0, size: int = 1) -> None:
        self._arithmetic = arithmetic
        self._device = device
        self._rank, self._size = rank, size

    def __call__(self, reader: TensorReader, config: ModelConfig) -> GpuWeights:
        """Read every tensor of the shard.

        Raises:
            ModelError: the kernels do not compute all that the model has.
            ValueError: the model cannot be split over `size` ranks (`split_config`).
        """
        GPU.check(config)
        shard = Shard.of(config, self._rank, self._size)
        shared = _Reading(reader, self._arithmetic, self._device)
        embedding = shared.dense((_Part.of(shard, "embedding"),))
        with ThreadPoolExecutor(_READERS) as threads:
            layers = list(threads.map(partial(_layer, shared, shard), range(config.layers)))
        head = _head(shard)
        tied = config.tie_word_embeddings and shared.form(head[0]) == "dense"
        weights = GpuWeights(
            embedding=embedding,
            layers=layers,
            final_norm=shared.vector(family_of(config).tensor("final_norm").hf),
            head=Linear(embedding) if tied else shared.product(head),
            rope_factors=reader.rope_factors,
        )
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # gives back what packing needed: the pool wants it
        return weights


def weights_bytes(
    source: ModelSource, config: ModelConfig, arithmetic: GpuArithmetic, *, load_format: str = "auto", ranks: int = 1
) -> int:
    """Device memory of the largest shard (the first rank's, which has all biases), in bytes, before anything is loaded.

    Raises:
        ValueError: as `engine.tensor_parallel.shards.split_config`.
    """
    shard, kinds = Shard.of(config, 0, ranks), stored_kinds(source, config, load_format)
    embedding = _Run("dense", (_Part.of(shard, "embedding"),))
    total = embedding.nbytes(arithmetic.dtype)
    for stack in (stack for layer in range(config.layers) for stack in _stacks(shard, layer).values()):
        total += sum(run.nbytes(arithmetic.dtype) for run in _runs(stack, kinds.get, arithmetic))
    for run in _runs(_head(shard), kinds.get, arithmetic):
        total += 0 if run.form == "dense" and config.tie_word_embeddings else run.nbytes(arithmetic.dtype)
    return total


def _stacks(shard: Shard, layer: int) -> dict[str, list[_Part]]:
    """What each product of a layer is made of."""
    roles = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}
    return {product: [_Part.of(shard, role, layer) for role in stacked] for product, stacked in roles.items()}


def _head(shard: Shard) -> list[_Part]:
    return [_Part.of(shard, "embedding" if shard.config.tie_word_embeddings else "head")]


def _runs(
    parts: Sequence[_Part], kind_of: Callable[[str], GroupKind | None], arithmetic: GpuArithmetic
) -> Iterator[_Run]:
    """`parts` grouped by how they are held; each group is one product."""
    for form, run in groupby(parts, lambda part: _form(part, kind_of(part.name), arithmetic)):
        stack = _Run(form, tuple(run))
        sizes = stack.shape
        yield _Run("dense", stack.parts) if form == "fp8" and any(size % MULTIPLE for size in sizes) else stack


def _form(part: _Part, kind: GroupKind | None, arithmetic: GpuArithmetic) -> str:
    if arithmetic.weights == "groups" and kind and not (part.columns.start % _GROUP or part.columns.stop % _GROUP):
        return kind
    # Rounding the head is what costs fp8 models most of their quality.
    return "fp8" if arithmetic.weights == "fp8" and not part.is_head else "dense"


class _Reading:
    """Brings tensors of one reader to the device. Used from several threads."""

    def __init__(self, reader: TensorReader, arithmetic: GpuArithmetic, device: torch.device) -> None:
        self._reader = reader
        self._arithmetic = arithmetic
        self._device = device
        self._partial_sums = PartialSums.on(device, KERNEL_ROWS) if arithmetic.weights == "groups" else None

    def vector(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A whole tensor in `dtype`."""
        out = torch.empty(self._reader.shapes[name], dtype=dtype, device=self._device)
        self._reader.read_into(name, out)
        return out

    def form(self, part: _Part) -> str:
        """How a part is held."""
        return _form(part, self._reader.group_kind(part.name), self._arithmetic)

    def product(self, parts: Sequence[_Part]) -> Product:
        """The product with the stacked parts."""
        products = [self._held(run) for run in _runs(parts, self._reader.group_kind, self._arithmetic)]
        return products[0] if len(products) == 1 else SideBySide(products)

    def dense(self, parts: Sequence[_Part]) -> Tensor:
        """The stacked parts in the model's type."""
        outputs, columns = _Run("dense", tuple(parts)).shape
        out = torch.empty((outputs, columns), dtype=self._arithmetic.dtype, device=self._device)
        for part, place in zip(parts, torch.split(out, [len(part.rows) for part in parts]), strict=True):
            name = part.name
            if self._reader.shapes[name] == tuple(place.shape):
                self._reader.read_into(name, place)
            else:
                whole = self.vector(name, self._arithmetic.dtype)
                mine = whole[part.rows.start : part.rows.stop, part.columns.start : part.columns.stop]
                place[: len(mine)] = mine
                place[len(mine) :] = 0
        return out

    def _held(self, run: _Run) -> Product:
        biases = [bias for part in run.parts if (bias := self._bias(part)) is not None]
        bias = torch.cat(biases) if biases else None
        if run.form == "dense":
            return Linear(self.dense(run.parts), bias)
        if run.form == "fp8":
            return Fp8(Fp8Matrix.of(self.dense(run.parts)), bias)
        kind = self._reader.group_kind(run.parts[0].name)
        assert kind is not None, f"{run.form} is no form of groups"
        rows = [_bytes_of(part, kind, self._reader.groups(part.name)).to(self._device) for part in run.parts]
        return Grouped(from_gguf(torch.cat(rows), kind), bias, self._partial_sums)

    def _bias(self, part: _Part) -> Tensor | None:
        if part.bias is None:
            return None
        return self.vector(part.bias, self._arithmetic.dtype)[part.rows.start : part.rows.stop]


def _bytes_of(part: _Part, kind: GroupKind, rows: Tensor) -> Tensor:
    """The groups of a part, uint8 [outputs, bytes]; rows past the matrix's end are groups of zeros."""
    size = GROUP_BYTES[kind]
    mine = rows[
        part.rows.start : part.rows.stop, part.columns.start // _GROUP * size : part.columns.stop // _GROUP * size
    ]
    missing = len(part.rows) - len(mine)
    return torch.cat((mine, mine.new_zeros((missing, mine.shape[1])))) if missing else mine


def _layer(reading: _Reading, shard: Shard, index: int) -> GpuLayer:
    config, stacks = shard.config, _stacks(shard, index)

    family = family_of(config)

    def norm(role: str) -> Tensor:
        return reading.vector(family.tensor(role, index).hf)

    def optional(role: str) -> Tensor | None:
        return norm(role) if family.has(role) else None

    return GpuLayer(
        input_norm=norm("input_norm"),
        after_attention_norm=optional("after_attention_norm"),
        post_norm=norm("post_norm"),
        q_norm=norm("q_norm") if config.qk_norm else None,
        k_norm=norm("k_norm") if config.qk_norm else None,
        qkv=reading.product(stacks["qkv"]),
        o=reading.product(stacks["o"]),
        gate_up=reading.product(stacks["gate_up"]),
        down=reading.product(stacks["down"]),
        after_mlp_norm=optional("after_mlp_norm"),
    )
