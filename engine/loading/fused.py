"""Matrices that files hold as one, as those that the decoders know."""

from collections.abc import Mapping
from typing import Literal

from configs.model.config import ModelConfig
from configs.model.source import ModelError
from configs.model.stored_tensor import StoredTensor
from engine.models.family import PARTS
from engine.models.registry import family_of


def unfused(
    tensors: Mapping[str, StoredTensor], config: ModelConfig, names: Literal["hf", "gguf"]
) -> dict[str, StoredTensor]:
    """`tensors`, by their names in the file, with each fused one replaced by its parts.

    Args:
        tensors: of a file.
        config: of its model.
        names: of which kind the names are.

    Raises:
        ModelError: a fused tensor has more or fewer rows than its parts.
    """
    family, found = family_of(config), dict(tensors)
    prefix = family.hf_layer if names == "hf" else family.gguf_layer
    places = [(fused, layer, part) for fused in family.fused for layer in range(config.layers) for part in PARTS]
    for fused, layer, part in places:
        name = f"{prefix.format(layer)}{getattr(fused, names)}.{part}"
        own = [family.tensor(role, layer, part) for role in fused.roles]
        if name not in tensors or getattr(own[0], names) in tensors:
            continue
        whole, rows = found.pop(name), [tensor.shape(config)[0] for tensor in own]
        if whole.shape[0] != sum(rows):
            raise ModelError(f"{whole.path.name}: {name} has {whole.shape[0]} rows, not {' + '.join(map(str, rows))}.")
        found |= {getattr(tensor, names): piece for tensor, piece in zip(own, whole.split(*rows), strict=True)}
    return found
