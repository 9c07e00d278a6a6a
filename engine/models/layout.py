"""Which tensors a model of a given description has, by their Hugging Face names, and their shapes. No torch."""

from collections.abc import Mapping
from math import prod

from configs.model.config import ModelConfig
from configs.model.source import ModelError
from engine.models.family import Shape
from engine.models.registry import family_of


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """All tensors that the model must have. A tied head is not one of them."""
    return {tensor.hf: tensor.shape(config) for tensor in family_of(config).tensors(config)}


def gguf_names(config: ModelConfig) -> dict[str, str]:
    """Hugging Face names of those tensors by their GGUF names; the head is among them even if the model ties it."""
    family = family_of(config)
    names = {tensor.gguf: tensor.hf for tensor in family.tensors(config)}
    head = family.tensor("head")
    return names | {head.gguf: head.hf}


def norm_names(config: ModelConfig) -> frozenset[str]:
    """Names of those tensors that are weights of norms."""
    return frozenset(tensor.hf for tensor in family_of(config).tensors(config) if tensor.spec.is_norm)


def weights_bytes(config: ModelConfig) -> int:
    """Memory of the weights in fp32, in bytes; a tied head counts once."""
    return 4 * sum(prod(shape) for shape in expected_shapes(config).values())


def check_shapes(where: str, found: Mapping[str, Shape], config: ModelConfig) -> None:
    """Compare the tensors in a file with its description.

    Raises:
        ModelError: tensors are missing, unexpected or of another shape; names the first few.
    """
    expected, head = expected_shapes(config), family_of(config).tensor("head")
    missing = [name for name in expected if name not in found]
    known = expected | {head.hf: head.shape(config)}  # which may be there a second time, as the embedding
    extra = [name for name in found if name not in known]
    wrong = [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in known.items()
        if name in found and found[name] != shape
    ]
    for what, names in (("lacks", missing), ("holds unknown", extra)):
        if names:
            raise ModelError(f"{where} {what} tensors: {_few(names)}; is it a complete {config.architecture} model?")
    if wrong:
        raise ModelError(f"{where} does not fit its description: {_few(wrong)}.")


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
