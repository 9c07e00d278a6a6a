"""Tensor parallelism: one model's weights split over processes that compute every step together.

Column, then row, as in Megatron-LM (Shoeybi et al. 2019, arXiv 1909.08053, section 3): each rank has some heads, with the rows of
q, k and v that make them and the columns of o that read them, and a part of the MLP's inner width, with its rows of gate and up
and its columns of down. What o and down give is then a part of a sum, added over the ranks: twice a layer. Embedding and head
are split by vocabulary: one sum at the start, one gather of logits at the end. Norms and the residual are everywhere.

A rank of two layers' model, size 2:

    embedding[vocab / 2] -sum-> hidden -> qkv[rows / 2] -> its heads, its KV -> o[columns / 2] -sum-> + hidden
        -> gate_up[rows / 2] -> down[columns / 2] -sum-> + hidden -> ... -> head[vocab / 2] -gather-> logits

KV heads are split where every rank gets one or more, else each is kept by as many ranks as need it.

A model that calls `Linear`, `Summed`, `VocabularyEmbedding` and `VocabularyHead` in place of `F.linear` and a look-up runs on
any number of ranks, one included (`Alone`). `Share` says which part of which matrix a rank has, however it is stored.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from configs.model.config import ModelConfig
from engine.loading.weights import LayerWeights, Weights

# Renamed in torch 2.13; the old name warns.
_gather_into: Callable[[Tensor, Tensor], object] = (
    getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
)


class Ranks(Protocol):
    """The processes that compute one model, seen from one of them.

    Contract: collective. All ranks make the same calls in the same order with the same shapes; a call returns when this rank may
    use the result. On a GPU it is queued on the current stream.
    """

    @property
    def rank(self) -> int:
        """Which this one is, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many they are."""
        ...

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x, the same bits on each; x, which must be contiguous, may be overwritten."""
        ...

    def gather(self, x: Tensor) -> Tensor:
        """[n, columns] of each rank side by side: [n, size * columns], on each."""
        ...

    def least(self, number: int) -> int:
        """The least of all ranks' numbers, on each; waits for them all."""
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """A model in one process: nothing to exchange."""

    rank: int = 0
    size: int = 1

    def sum(self, x: Tensor) -> Tensor:
        """See `Ranks`."""
        return x

    def gather(self, x: Tensor) -> Tensor:
        """See `Ranks`."""
        return x

    def least(self, number: int) -> int:
        """See `Ranks`."""
        return number


class Joined:
    """Ranks over torch.distributed: NCCL between GPUs, gloo between CPUs.

    Args:
        rank: of this process.
        size: of the group.
        rendezvous: where they meet: `tcp://host:port` of rank 0, or `file:///path` that does not exist yet.
        device: where it computes: decides the backend.
        timeout: longest wait for the others, when joining and (gloo) in each call, in seconds.
        ordered: add in the order of the ranks. Without it, with more than two ranks, the order depends on where in the batch a row
            lies, and so does its last bit. Costs size / 2 times the bytes, which at decode sizes is not what takes time.

    Raises:
        ConnectionError: the others did not come.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        rendezvous: str,
        device: torch.device,
        *,
        timeout: float = 600.0,
        ordered: bool = True,
    ) -> None:
        self.rank, self.size = rank, size
        self._gathers = ordered and size > 2
        self._device = device
        gpu = device.type == "cuda"
        if device == torch.device("cuda"):  # without an index, which is what binds the group to a device
            device = torch.device("cuda", torch.cuda.current_device())
        try:
            dist.init_process_group(
                "nccl" if gpu else "gloo",
                init_method=rendezvous,
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=timeout),
                device_id=device if gpu else None,
            )
            self.least(0)  # who found nothing to do would else leave while another is still on its way in
        except RuntimeError as error:  # torch has kinds of its own for some of the ways to fail, not for all
            raise ConnectionError(f"rank {rank} of {size} waited {timeout:g} s at {rendezvous}: {error}") from error

    def sum(self, x: Tensor) -> Tensor:
        """See `Ranks`."""
        if self._gathers:
            parts = self._all(x)
            total = parts[0]
            for part in parts[1:]:
                total += part
            return total
        dist.all_reduce(x)
        return x

    def gather(self, x: Tensor) -> Tensor:
        """See `Ranks`."""
        return self._all(x.contiguous()).transpose(0, 1).flatten(1)

    def least(self, number: int) -> int:
        """See `Ranks`."""
        return int(self._all(torch.tensor([number], device=self._device)).min())

    def close(self) -> None:
        """Leave. The others' next call fails."""
        dist.destroy_process_group()

    def _all(self, x: Tensor) -> Tensor:
        """[size, ...]: x of each rank."""
        out = x.new_empty((self.size * len(x), *x.shape[1:]))
        _gather_into(out, x)
        return out.view(self.size, *x.shape)


@dataclass(frozen=True, slots=True)
class Linear:
    """x W^T + b with rows of W here: what it gives is this rank's columns."""

    weight: Tensor
    bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in] to [rows, out of this rank]."""
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Summed:
    """A product with columns of W, and of x, here: added over the ranks. Only one rank has the bias."""

    part: Callable[[Tensor], Tensor]
    ranks: Ranks

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in of this rank] to [rows, out]."""
        return self.ranks.sum(self.part(x))


@dataclass(frozen=True, slots=True)
class VocabularyEmbedding:
    """Token ids to rows of a table of which this rank has a part."""

    table: Tensor  # [vocab / size, hidden]
    ranks: Ranks

    def __call__(self, token_ids: Tensor) -> Tensor:
        """int64 [rows] to [rows, hidden]. A row is on one rank, zero on the others: the sum is exact."""
        here = token_ids - self.ranks.rank * len(self.table)
        outside = (here < 0) | (here >= len(self.table))
        found = F.embedding(here.masked_fill(outside, 0), self.table)
        return self.ranks.sum(found.masked_fill_(outside[:, None], 0.0))


@dataclass(frozen=True, slots=True)
class VocabularyHead:
    """Logits of all tokens from a head of which this rank has a part."""

    weight: Tensor  # [vocab / size, hidden]
    vocab_size: int
    ranks: Ranks

    def __call__(self, hidden: Tensor) -> Tensor:
        """[n, hidden] to [n, vocab], on every rank."""
        return self.ranks.gather(F.linear(hidden, self.weight))[:, : self.vocab_size]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelLayer:
    """One layer, ready to call."""

    input_norm: Tensor
    qkv: Linear
    qk_norm: Tensor | None
    o: Summed
    post_norm: Tensor
    gate_up: Linear
    down: Summed

    @classmethod
    def of(cls, part: LayerWeights, ranks: Ranks) -> "ParallelLayer":
        """The layer of which `part` (`split_layer`) is this rank's share."""
        return cls(
            input_norm=part.input_norm,
            qkv=Linear(part.qkv, part.qkv_bias),
            qk_norm=part.qk_norm,
            o=Summed(Linear(part.o, part.o_bias), ranks),
            post_norm=part.post_norm,
            gate_up=Linear(part.gate_up, part.gate_up_bias),
            down=Summed(Linear(part.down, part.down_bias), ranks),
        )


@dataclass(frozen=True, slots=True)
class Share:
    """Which rows and columns of a model's matrices one rank has, as ranges of the whole ones.

    Attributes:
        queries: rows of q, columns of o.
        keys: rows of k and of v.
        inner: rows of gate and of up, columns of down.
        vocabulary: rows of embedding and head; as many on each rank, so the last one's may lie past the end.
        first: whether this is the rank that adds what may be added only once: the biases of o and down.
    """

    queries: range
    keys: range
    inner: range
    vocabulary: range
    first: bool

    @classmethod
    def of(cls, config: ModelConfig, rank: int, size: int) -> "Share":
        """Rank `rank`'s share of the model that `config` describes.

        Raises:
            ValueError: as `split_config`.
        """
        dim, part = config.head_dim, split_config(config, size)
        return cls(
            queries=_run(rank * part.heads * dim, part.heads * dim),
            keys=_run(rank * config.kv_heads // size * dim, part.kv_heads * dim),
            inner=_run(rank * part.intermediate_size, part.intermediate_size),
            vocabulary=_run(rank * -(-config.vocab_size // size), -(-config.vocab_size // size)),
            first=rank == 0,
        )


def split_config(config: ModelConfig, size: int) -> ModelConfig:
    """The model as one of `size` ranks sees it: its heads, its KV heads, its part of the inner width. The KV cache of a rank, its
    plans and its attention need no other description. `vocab_size` stays the whole model's.

    Raises:
        ValueError: the heads or the inner width cannot be split evenly; the sentence says which sizes can.
    """
    if _obstacle(config, size):
        fits = [str(other) for other in range(1, config.heads + 1) if not _obstacle(config, other)]
        raise ValueError(f"{_obstacle(config, size)}; this model can be split over {', '.join(fits)}")
    return replace(
        config,
        heads=config.heads // size,
        kv_heads=max(1, config.kv_heads // size),
        intermediate_size=config.intermediate_size // size,
    )


def split_weights(weights: Weights, config: ModelConfig, rank: int, size: int) -> Weights:
    """Rank `rank`'s share of `weights`, which are those of `config`, copied, so that the whole can be let go.

    Raises:
        ValueError: as `split_config`.
    """
    share = Share.of(config, rank, size)
    embedding = _vocabulary(weights.embedding, share.vocabulary)
    tied = weights.head is weights.embedding
    return replace(
        weights,
        embedding=embedding,
        layers=[_split_layer(layer, config, share) for layer in weights.layers],
        head=embedding if tied else _vocabulary(weights.head, share.vocabulary),
    )


def _split_layer(layer: LayerWeights, config: ModelConfig, share: Share) -> LayerWeights:
    """One layer's share: rows of the stacked q, k, v and of the stacked gate, up; columns of o and down."""
    dim = config.head_dim
    keys = config.heads * dim  # where they begin in the stack
    qkv = [share.queries, _moved(share.keys, keys), _moved(share.keys, keys + config.kv_heads * dim)]
    mlp = [share.inner, _moved(share.inner, config.intermediate_size)]
    heads = [range(part.start // dim, part.stop // dim) for part in qkv[:2]]
    return LayerWeights(
        input_norm=layer.input_norm,
        qkv=_rows(layer.qkv, qkv),
        qkv_bias=None if layer.qkv_bias is None else _rows(layer.qkv_bias, qkv),
        qk_norm=None if layer.qk_norm is None else _rows(layer.qk_norm, heads),
        o=_columns(layer.o, share.queries),
        o_bias=layer.o_bias if share.first else None,
        post_norm=layer.post_norm,
        gate_up=_rows(layer.gate_up, mlp),
        gate_up_bias=None if layer.gate_up_bias is None else _rows(layer.gate_up_bias, mlp),
        down=_columns(layer.down, share.inner),
        down_bias=layer.down_bias if share.first else None,
    )


def _obstacle(config: ModelConfig, size: int) -> str | None:
    """Why `size` ranks cannot share the model."""
    if size < 1 or config.heads % size:
        return f"{config.heads} attention heads cannot be split over {size} ranks evenly"
    if config.kv_heads % size and size % config.kv_heads:
        return f"{config.kv_heads} KV heads can be neither split over {size} ranks evenly nor kept by as many each"
    if config.intermediate_size % size:
        return f"an intermediate_size of {config.intermediate_size} cannot be split over {size} ranks evenly"
    return None


def _run(start: int, length: int) -> range:
    return range(start, start + length)


def _moved(part: range, by: int) -> range:
    return range(part.start + by, part.stop + by)


def _rows(stacked: Tensor, parts: list[range]) -> Tensor:
    """A copy of the rows of each part, stacked again."""
    return torch.cat([stacked[part.start : part.stop] for part in parts])


def _columns(weight: Tensor, part: range) -> Tensor:
    return weight[:, part.start : part.stop].clone(memory_format=torch.contiguous_format)


def _vocabulary(table: Tensor, rows: range) -> Tensor:
    """A copy of the rows of one rank; zeros where they lie past the end."""
    out = table.new_zeros((len(rows), table.shape[1]))
    mine = table[rows.start : rows.stop]
    out[: len(mine)] = mine
    return out
