"""The weights of an encoder: tensors by their names, as a checkpoint has them, on the device and in the type that computes."""

import zlib
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from configs.model.encoder import EncoderConfig
from configs.model.safetensors_header import read_safetensors
from configs.model.source import ModelError, ModelSource
from configs.model.stored_tensor import StoredTensor
from engine.models.encoder_family import EncoderFamily, EncoderTensor
from engine.models.registry import encoder_family_of

_BUFFERS = (".position_ids", ".token_type_ids")  # counts from 0, which old checkpoints store
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}  # of norms, in checkpoints that were converted from TensorFlow
_SPREAD = 0.02  # of random weights

Weights = dict[str, Tensor]  # by the name that the family gives, the body's without a prefix


def load_encoder(
    source: ModelSource, config: EncoderConfig, load_format: str, place: Callable[[Tensor], Tensor]
) -> Weights:
    """All tensors of an encoder.

    Args:
        source: the model's files.
        config: their description.
        load_format: as in the settings.
        place: moves one to where it is needed, in the type in which it is.

    Raises:
        ModelError: the files do not fit the description or the format.
    """
    wanted = list(encoder_family_of(config).tensors(config))
    if load_format == "dummy":
        return {tensor.name: place(_random(tensor)) for tensor in wanted}
    if load_format == "gguf":
        raise ModelError(f"--load-format gguf does not fit {source.path}; use --load-format auto.")
    return _stored(source.path, config, wanted, place)


def _random(tensor: EncoderTensor) -> Tensor:
    """Depends on the name alone, not on Python's hashing. Vectors, the norms' weights among them, begin at one, biases at zero."""
    if len(tensor.shape) == 1:
        return torch.ones(tensor.shape) if tensor.name.endswith("weight") else torch.zeros(tensor.shape)
    seed = torch.Generator().manual_seed(zlib.crc32(tensor.name.encode()))
    return torch.empty(tensor.shape).normal_(0.0, _SPREAD, generator=seed)


def _stored(
    folder: Path, config: EncoderConfig, wanted: Iterable[EncoderTensor], place: Callable[[Tensor], Tensor]
) -> Weights:
    family = encoder_family_of(config)
    found = {_modern(name): tensor for name, tensor in read_safetensors(folder).items() if not name.endswith(_BUFFERS)}
    prefix = family.prefix if any(name.startswith(family.prefix) for name in found) else ""
    names = {tensor.name if tensor.head else prefix + tensor.name: tensor for tensor in wanted}
    _check(folder, family, prefix, names, found)
    with ExitStack() as stack:
        files = {path: stack.enter_context(_opened(path)) for path in {found[name].path for name in names}}
        return {
            tensor.name: place(files[found[name].path].get_tensor(found[name].name)) for name, tensor in names.items()
        }


def _modern(name: str) -> str:
    stem, _, part = name.rpartition(".")
    return f"{stem}.{_OLD_NAMES[part]}" if part in _OLD_NAMES else name


def _check(
    folder: Path, family: EncoderFamily, prefix: str, names: dict[str, EncoderTensor], found: dict[str, StoredTensor]
) -> None:
    """Compare the tensors in the files with the description.

    Raises:
        ModelError: tensors are missing, unexpected or of another shape; names the first few.
    """
    unused = tuple(start for each in family.unused for start in (each, prefix + each))
    missing = [name for name in names if name not in found]
    extra = [name for name in found if name not in names and not name.startswith(unused)]
    wrong = [
        f"{name} is {list(found[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in names.items()
        if name in found and found[name].shape != tensor.shape
    ]
    for what, which in (("lacks", missing), ("holds unknown", extra)):
        if which:
            raise ModelError(f"{folder} {what} tensors: {_few(which)}; is it a complete {family.name} model?")
    if wrong:
        raise ModelError(f"{folder} does not fit its description: {_few(wrong)}.")


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _opened(path: Path) -> safe_open:
    """A file that the safetensors package has checked."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot read {path}: {error}; download it again.") from error
