"""What a family of bidirectional encoders is: names and shapes of its tensors. No torch.

All families compute alike (Devlin et al. 2019, arXiv 1810.04805, section 3): embeddings of words, positions and types are added and
normed, and each layer norms after attention and after its MLP. They differ in what their tensors are called, where positions
begin, and in the head that gives scores.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from configs.model.encoder import EncoderConfig, EncoderRules
from engine.models.family import Shape

# By role: the axes of a tensor's dimensions, as `_sizes` has them.
EMBEDDINGS: Mapping[str, tuple[str, ...]] = {
    "words": ("vocabulary", "hidden"),
    "positions": ("positions", "hidden"),
    "types": ("types", "hidden"),
    "embedding_norm": ("hidden",),
}
ENCODER_LAYER: Mapping[str, tuple[str, ...]] = {
    "q": ("hidden", "hidden"),
    "k": ("hidden", "hidden"),
    "v": ("hidden", "hidden"),
    "o": ("hidden", "hidden"),
    "attention_norm": ("hidden",),
    "up": ("inner", "hidden"),
    "down": ("hidden", "inner"),
    "output_norm": ("hidden",),
}
HEAD: Mapping[str, tuple[str, ...]] = {"dense": ("hidden", "hidden"), "labels": ("labels", "hidden")}
_TABLES = {"words", "positions", "types"}  # which have no bias


class EncoderTensor(NamedTuple):
    """One tensor: its name in a checkpoint and its shape. `head`: it belongs to the classification head, which stands outside the
    body."""

    name: str
    shape: Shape
    head: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFamily:
    """One architecture of encoders.

    Attributes:
        name: what `EncoderConfig.architecture` says, and `model_type` in `config.json`.
        hf: how its transformers classes read a `config.json`.
        prefix: before the names of the body's tensors in checkpoints of models with a head.
        embeddings: names of the tensors of `EMBEDDINGS`.
        layer: names of those of `ENCODER_LAYER`, behind `layer_prefix`.
        layer_prefix: with a place for the layer's number.
        head: names of those of `HEAD`.
        head_activation: between the two.
        unused: beginnings of names that checkpoints have and neither vectors nor scores need: heads of other tasks.
    """

    name: str
    hf: EncoderRules
    prefix: str
    embeddings: Mapping[str, str]
    layer: Mapping[str, str]
    layer_prefix: str
    head: Mapping[str, str]
    head_activation: Literal["tanh", "relu"] = "tanh"
    unused: tuple[str, ...] = ()

    def weight(self, role: str, layer: int | None = None) -> str:
        """The name of a tensor of the body without `.weight`."""
        return self.embeddings[role] if layer is None else self.layer_prefix.format(layer) + self.layer[role]

    def tensors(self, config: EncoderConfig) -> Iterator[EncoderTensor]:
        """All tensors that a model of this description needs, the body's without the prefix."""
        sizes = _sizes(config)
        places = [(self.weight(role), role, EMBEDDINGS[role], False) for role in self.embeddings]
        for layer in range(config.layers):
            places += [(self.weight(role, layer), role, axes, False) for role, axes in ENCODER_LAYER.items()]
        if config.labels:
            places += [(self.head[role], role, axes, True) for role, axes in HEAD.items()]
        for name, role, axes, head in places:
            shape = tuple(sizes[axis] for axis in axes)
            yield EncoderTensor(f"{name}.weight", shape, head)
            if role not in _TABLES:
                yield EncoderTensor(f"{name}.bias", shape[:1], head)


def _sizes(config: EncoderConfig) -> dict[str, int]:
    return {
        "vocabulary": config.vocab_size,
        "positions": config.max_position,
        "types": config.types,
        "hidden": config.hidden_size,
        "inner": config.intermediate_size,
        "labels": config.labels,
    }
