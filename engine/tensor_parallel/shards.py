"""Tensor parallelism: one model's weights split over processes that compute every step together.

Column, then row, as in Megatron-LM (Shoeybi et al. 2019, arXiv 1909.08053, section 3): each rank has some heads, with the rows of
q, k and v that make them and the columns of o that read them, and a part of the MLP's inner width, with its rows of gate and up
and its columns of down. What o and down give is then part of a sum, added up over the ranks: twice a layer. Embedding and head
are split by vocabulary: one sum at the start, one gather of logits at the end. Every rank has all norms and the residual.

One rank of two:

    embedding[vocab / 2] -sum-> hidden -> qkv[rows / 2] -> its heads, its KV -> o[columns / 2] -sum-> + hidden
        -> gate_up[rows / 2] -> down[columns / 2] -sum-> + hidden -> ... -> head[vocab / 2] -gather-> logits

KV heads are split where every rank gets one or more; otherwise each is kept by as many ranks as need it.

Which part of which tensor a rank has follows from the axes that the model's family gives it (`engine.models.family`), however
it is stored. No torch: memory is planned with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from configs.model.config import ModelConfig
from engine.models.family import Axis, NamedTensor


@dataclass(frozen=True, slots=True)
class Shard:
    """Which entries of a model's tensors one rank has.

    Attributes:
        config: of the whole model.
        axes: the entries of each axis, as ranges of the whole one. All ranks have equally long ranges of the vocabulary, so the
            last rank's may run past its end.
        first: whether this is the rank that adds what may be added only once: the biases of o and down.
    """

    config: ModelConfig
    axes: Mapping[Axis, range]
    first: bool

    @classmethod
    def of(cls, config: ModelConfig, rank: int, size: int) -> "Shard":
        """Rank `rank`'s shard of the model that `config` describes.

        Raises:
            ValueError: as `split_config`.
        """
        dim, part = config.head_dim, split_config(config, size)
        keys, words = rank * config.kv_heads // size, -(-config.vocab_size // size)
        axes = {axis: range(axis.size(config)) for axis in Axis if not axis.split} | {
            Axis.QUERIES: range(rank * part.heads * dim, (rank + 1) * part.heads * dim),
            Axis.KEYS: range(keys * dim, (keys + part.kv_heads) * dim),
            Axis.INNER: range(rank * part.intermediate_size, (rank + 1) * part.intermediate_size),
            Axis.VOCABULARY: range(rank * words, (rank + 1) * words),
        }
        return cls(config, axes, rank == 0)

    def ranges(self, tensor: NamedTensor) -> tuple[range, ...]:
        """The entries of a tensor along each of its dimensions."""
        axes = tensor.spec.axes if tensor.part == "weight" else tensor.spec.axes[:1]
        return tuple(self.axes[axis] for axis in axes)

    def holds(self, tensor: NamedTensor) -> bool:
        """Whether this rank has a part of a tensor: of all that the model has, except biases that the first rank adds."""
        summed = tensor.part == "bias" and tensor.spec.axes[1].split
        return tensor.present(self.config) and (self.first or not summed)


def split_config(config: ModelConfig, size: int) -> ModelConfig:
    """The model as one of `size` ranks sees it: its heads, its KV heads, its part of the inner width. A rank's KV cache, memory
    plan and attention need no other description. `vocab_size` stays the whole model's.

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


def _obstacle(config: ModelConfig, size: int) -> str | None:
    """Why the model cannot be split over `size` ranks; None if it can."""
    if size < 1 or config.heads % size:
        return f"{config.heads} attention heads cannot be split over {size} ranks evenly"
    if config.kv_heads % size and size % config.kv_heads:
        return f"{config.kv_heads} KV heads can be neither split over {size} ranks evenly nor kept by as many each"
    if config.intermediate_size % size:
        return f"an intermediate_size of {config.intermediate_size} cannot be split over {size} ranks evenly"
    return None
