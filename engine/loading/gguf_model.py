"""A GGUF model's tensors under Hugging Face names, as its headers describe them. No torch, no data is read.

llama.cpp reorders the rows of q and k of some architectures so that the two halves of a rotary pair are side by side
(`Family.gguf_pairs_adjacent`); the decoder uses the half-split order, so they have to be put back.
"""

from pathlib import Path

from configs.model.config import ModelConfig
from configs.model.gguf_header import read_gguf_header
from configs.model.stored_tensor import StoredTensor
from engine.loading.fused import unfused
from engine.loading.gguf_tensors import gguf_tensors
from engine.loading.stored import StoredMatrix
from engine.models.layout import check_shapes, gguf_names
from engine.models.registry import family_of

_ROPE_FACTORS = "rope_freqs.weight"


class GgufModel:
    """The tensors of the GGUF file at `path`, and of the further parts of a split one.

    Attributes:
        tensors: by their Hugging Face names.
        heads: of the matrices whose rows are to be put back, their numbers of heads.
        rope_factors: where they are, if there are any.

    Raises:
        ModelError: tensors are missing, unexpected, cut off, or of another shape or type than described.
    """

    def __init__(self, path: Path, config: ModelConfig) -> None:
        header = read_gguf_header(path)
        tensors = gguf_tensors(header)
        self.rope_factors: StoredTensor | None = tensors.pop(_ROPE_FACTORS, None)
        tensors = unfused(tensors, config, "gguf")
        names = gguf_names(config)  # an unknown tensor keeps its own name and is refused with the shapes
        self.tensors = {names.get(name, name): tensor for name, tensor in tensors.items()}
        self.heads = _interleaved(config)
        check_shapes(header.path.name, {name: tensor.shape for name, tensor in self.tensors.items()}, config)

    def blocks(self, name: str) -> StoredMatrix:
        """A matrix as it is stored."""
        tensor, heads = self.tensors[name], self.heads.get(name)
        return StoredMatrix(tensor, tensor.shape[0] // heads // 2 if heads else 0)


def _interleaved(config: ModelConfig) -> dict[str, int]:
    family = family_of(config)
    if not family.gguf_pairs_adjacent:
        return {}
    heads = {"q": config.heads, "k": config.kv_heads}
    return {tensor.hf: heads[tensor.spec.role] for tensor in family.tensors(config) if tensor.spec.role in heads}
