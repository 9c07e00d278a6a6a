"""From named tensors to one rank's weights on its GPU, and what they will take there, known from headers alone.

Matrices go from the file to the device one by one in the form they stay in; no whole model is ever in the host's memory.
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
from engine.gpu.formats import GpuArithmetic, stored_kinds
from engine.gpu.linear import Fp8, Grouped, Product, SideBySide
from engine.loading.assemble import TensorReader
from engine.loading.layout import EMBEDDING, FINAL_NORM, HEAD
from engine.tensor_parallel.shards import Linear, Share
from kernels.cpu.packing import Kind
from kernels.gpu.linear.fp8 import MULTIPLE, Fp8Matrix
from kernels.gpu.linear.quantized_matrix import GROUP_BYTES, from_gguf, packed_bytes

_GROUP = 32  # columns of a stored group
_READERS = 4  # layers read at once: enough to keep a disk and the link to the device busy


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLayer:
    """One layer's share, ready to call; norms fp32."""

    input_norm: Tensor
    qkv: Product
    q_norm: Tensor | None  # [dim]
    k_norm: Tensor | None
    o: Product  # its sum over the ranks is the layer's
    post_norm: Tensor
    gate_up: Product
    down: Product  # likewise

    @property
    def products(self) -> tuple[Product, ...]:
        """In the order they run."""
        return self.qkv, self.o, self.gate_up, self.down


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuWeights:
    """One rank's share of a model on its device."""

    embedding: Tensor  # [vocabulary of this rank, hidden] in the model's type
    layers: list[GpuLayer]
    final_norm: Tensor
    head: Product
    rope_factors: Tensor | None = None  # see `engine.models.rope`

    @property
    def nbytes(self) -> int:
        """Device memory of matrices and biases; norms are next to nothing."""
        tied = isinstance(self.head, Linear) and self.head.weight is self.embedding
        products = sum(product.nbytes for layer in self.layers for product in layer.products)
        return products + self.embedding.nbytes + (0 if tied else self.head.nbytes)


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows and columns of one named matrix, and whether its bias is added here. Rows past its end are zeros."""

    name: str  # without `.weight`
    rows: range
    columns: range
    bias: bool = False


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring parts that are held alike, stacked; `form` is a kind of groups, `dense` or `fp8`."""

    form: str
    parts: tuple[_Part, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """[outputs, columns] of the stack."""
        return sum(len(part.rows) for part in self.parts), len(self.parts[0].columns)

    def nbytes(self, dtype: torch.dtype) -> int:
        """What it takes on the device, in bytes."""
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
        arithmetic: the form they take.
        device: where they go.
        rank: whose share.
        size: of the group that shares the model.
    """

    def __init__(self, arithmetic: GpuArithmetic, device: torch.device, rank: int = 0, size: int = 1) -> None:
        self._arithmetic = arithmetic
        self._device = device
        self._rank, self._size = rank, size

    def __call__(self, reader: TensorReader, config: ModelConfig) -> GpuWeights:
        """Read every tensor of the share.

        Raises:
            ValueError: the model cannot be shared by so many ranks (`split_config`).
        """
        share = Share.of(config, self._rank, self._size)
        shared = _Reading(reader, self._arithmetic, self._device)
        embedding = shared.dense(
            (_Part(EMBEDDING.removesuffix(".weight"), share.vocabulary, range(config.hidden_size)),)
        )
        with ThreadPoolExecutor(_READERS) as threads:
            layers = list(threads.map(partial(_layer, shared, config, share), range(config.layers)))
        head = _head(config, share)
        tied = config.tie_word_embeddings and shared.form(head[0]) == "dense"
        weights = GpuWeights(
            embedding=embedding,
            layers=layers,
            final_norm=shared.vector(FINAL_NORM),
            head=Linear(embedding) if tied else shared.product(head),
            rope_factors=reader.rope_factors,
        )
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # of what packing needed: the pool wants it
        return weights


def weights_bytes(
    source: ModelSource, config: ModelConfig, arithmetic: GpuArithmetic, *, load_format: str = "auto", ranks: int = 1
) -> int:
    """Device memory of the largest share (the first rank's, which has all biases), in bytes, before anything is loaded.

    Raises:
        ValueError: as `engine.tensor_parallel.shards.split_config`.
    """
    share, kinds = Share.of(config, 0, ranks), stored_kinds(source, load_format)
    size = arithmetic.dtype.itemsize
    total = len(share.vocabulary) * config.hidden_size * size
    stacks = [stack for layer in range(config.layers) for stack in _stacks(layer, config, share).values()]
    for run in (run for stack in stacks for run in _runs(stack, kinds.get, arithmetic)):
        total += run.nbytes(arithmetic.dtype)
    for run in _runs(_head(config, share), kinds.get, arithmetic):
        total += 0 if run.form == "dense" and config.tie_word_embeddings else run.nbytes(arithmetic.dtype)
    return total


def _stacks(layer: int, config: ModelConfig, share: Share) -> dict[str, list[_Part]]:
    """What each product of a layer is made of."""
    prefix = f"model.layers.{layer}."
    attention, mlp, hidden = prefix + "self_attn.", prefix + "mlp.", range(config.hidden_size)
    return {
        "qkv": [
            _Part(attention + name, rows, hidden, config.qkv_bias)
            for name, rows in (("q_proj", share.queries), ("k_proj", share.keys), ("v_proj", share.keys))
        ],
        "o": [_Part(attention + "o_proj", hidden, share.queries, config.o_bias and share.first)],
        "gate_up": [_Part(mlp + name, share.inner, hidden, config.mlp_bias) for name in ("gate_proj", "up_proj")],
        "down": [_Part(mlp + "down_proj", hidden, share.inner, config.mlp_bias and share.first)],
    }


def _head(config: ModelConfig, share: Share) -> list[_Part]:
    name = EMBEDDING if config.tie_word_embeddings else HEAD
    return [_Part(name.removesuffix(".weight"), share.vocabulary, range(config.hidden_size))]


def _runs(parts: Sequence[_Part], kind_of: Callable[[str], Kind | None], arithmetic: GpuArithmetic) -> Iterator[_Run]:
    """`parts` grouped by how they are held: one product each."""
    for form, run in groupby(parts, lambda part: _form(part, kind_of(part.name + ".weight"), arithmetic)):
        stack = _Run(form, tuple(run))
        sizes = stack.shape
        yield _Run("dense", stack.parts) if form == "fp8" and any(size % MULTIPLE for size in sizes) else stack


def _form(part: _Part, kind: Kind | None, arithmetic: GpuArithmetic) -> str:
    if arithmetic.weights == "groups" and kind and not (part.columns.start % _GROUP or part.columns.stop % _GROUP):
        return kind
    is_head = part.name + ".weight" in (EMBEDDING, HEAD)  # rounding it is what costs fp8 models most of their quality
    return "fp8" if arithmetic.weights == "fp8" and not is_head else "dense"


class _Reading:
    """Tensors of one reader, on their way to the device. Used from several threads."""

    def __init__(self, reader: TensorReader, arithmetic: GpuArithmetic, device: torch.device) -> None:
        self._reader = reader
        self._arithmetic = arithmetic
        self._device = device

    def vector(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A whole tensor in `dtype`."""
        out = torch.empty(self._reader.shapes[name], dtype=dtype, device=self._device)
        self._reader.read_into(name, out)
        return out

    def form(self, part: _Part) -> str:
        """How a part is held."""
        stored = self._reader.stored(part.name + ".weight")
        return _form(part, stored and stored[0], self._arithmetic)

    def product(self, parts: Sequence[_Part]) -> Product:
        """Of the stacked parts."""
        stored = {part.name + ".weight": self._reader.stored(part.name + ".weight") for part in parts}
        kinds = {name: found[0] for name, found in stored.items() if found}
        products = [self._held(run, stored) for run in _runs(parts, kinds.get, self._arithmetic)]
        return products[0] if len(products) == 1 else SideBySide(products)

    def dense(self, parts: Sequence[_Part]) -> Tensor:
        """The stacked parts in the model's type."""
        outputs, columns = _Run("dense", tuple(parts)).shape
        out = torch.empty((outputs, columns), dtype=self._arithmetic.dtype, device=self._device)
        for part, place in zip(parts, torch.split(out, [len(part.rows) for part in parts]), strict=True):
            name = part.name + ".weight"
            if self._reader.shapes[name] == tuple(place.shape):
                self._reader.read_into(name, place)
            else:
                whole = self.vector(name, self._arithmetic.dtype)
                mine = whole[part.rows.start : part.rows.stop, part.columns.start : part.columns.stop]
                place[: len(mine)] = mine
                place[len(mine) :] = 0
        return out

    def _held(self, run: _Run, stored: dict[str, tuple[Kind, Tensor] | None]) -> Product:
        bias = torch.cat([self._bias(part) for part in run.parts]) if run.parts[0].bias else None
        if run.form == "dense":
            return Linear(self.dense(run.parts), bias)
        if run.form == "fp8":
            return Fp8(Fp8Matrix.of(self.dense(run.parts)), bias)
        found = [(part, stored[part.name + ".weight"]) for part in run.parts]
        rows = [_bytes_of(part, *kept) for part, kept in found if kept is not None]
        kind = next(kept[0] for _, kept in found if kept is not None)
        return Grouped(from_gguf(torch.cat([some.to(self._device) for some in rows]), kind), bias)

    def _bias(self, part: _Part) -> Tensor:
        return self.vector(part.name + ".bias", self._arithmetic.dtype)[part.rows.start : part.rows.stop]


def _bytes_of(part: _Part, kind: Kind, rows: Tensor) -> Tensor:
    """The stored groups of a part, uint8 [outputs, bytes]; zeros past the end are groups of zeros."""
    size = GROUP_BYTES[kind]
    mine = rows[
        part.rows.start : part.rows.stop, part.columns.start // _GROUP * size : part.columns.stop // _GROUP * size
    ]
    missing = len(part.rows) - len(mine)
    return torch.cat((mine, mine.new_zeros((missing, mine.shape[1])))) if missing else mine


def _layer(reading: _Reading, config: ModelConfig, share: Share, index: int) -> GpuLayer:
    prefix = f"model.layers.{index}."
    stacks = _stacks(index, config, share)
    norms = {name: f"{prefix}self_attn.{name}.weight" for name in ("q_norm", "k_norm")}
    return GpuLayer(
        input_norm=reading.vector(prefix + "input_layernorm.weight"),
        post_norm=reading.vector(prefix + "post_attention_layernorm.weight"),
        q_norm=reading.vector(norms["q_norm"]) if config.qk_norm else None,
        k_norm=reading.vector(norms["k_norm"]) if config.qk_norm else None,
        qkv=reading.product(stacks["qkv"]),
        o=reading.product(stacks["o"]),
        gate_up=reading.product(stacks["gate_up"]),
        down=reading.product(stacks["down"]),
    )
