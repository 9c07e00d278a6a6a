"""The tensors of a GGUF file: types that can be read, and where their bytes are. No torch, no data is read."""

from collections.abc import Iterable

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from configs.model.gguf_header import GgufHeader, TensorInfo
from configs.model.source import ModelError
from configs.model.stored_tensor import StoredTensor

# What ggml computes with but keeps in no file, and what is no weight.
_UNREADABLE = {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64"}
READABLE = frozenset(kind for kind in GGMLQuantizationType if kind.name not in _UNREADABLE)
# Numbers of types that llama.cpp has given up; a file in them has to be made again.
_GIVEN_UP = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8"}
_GIVEN_UP |= {38: "IQ4_NL_8_8"}
_NAMES = _GIVEN_UP | {kind.value: kind.name for kind in GGMLQuantizationType}
_READABLE_NUMBERS = {kind.value for kind in READABLE}


def gguf_tensors(header: GgufHeader) -> dict[str, StoredTensor]:
    """All tensors of a model by their names in its files; `kind` is the name of a `gguf.GGMLQuantizationType`.

    Raises:
        ModelError: a type that cannot be read, rows that do not fit it, a file that is cut off, tensors that share bytes.
    """
    sizes = {path: path.stat().st_size for path in {info.path for info in header.tensors.values()}}
    tensors = {name: _stored(info, sizes[info.path]) for name, info in header.tensors.items()}
    _refuse_overlaps(tensors.values())
    return tensors


def _stored(info: TensorInfo, file_size: int) -> StoredTensor:
    where = info.path.name
    if info.ggml_type not in _READABLE_NUMBERS:
        name = _NAMES.get(info.ggml_type, f"type {info.ggml_type}")
        known = ", ".join(sorted(readable.name for readable in READABLE))
        raise ModelError(f"{where}: {info.name} is stored as {name}, which cannot be read; known: {known}.")
    kind = GGMLQuantizationType(info.ggml_type)
    block, block_size = GGML_QUANT_SIZES[kind]
    if info.shape[-1] % block:
        raise ModelError(
            f"{where}: rows of {info.name} are {info.shape[-1]} long, not a multiple of {block}, which {kind.name} needs."
        )
    size = info.elements // block * block_size
    if info.offset + size > file_size:
        raise ModelError(f"{where} is cut off within {info.name}; download it again.")
    return StoredTensor(info.name, info.path, kind.name, info.shape, info.offset, size)


def _refuse_overlaps(tensors: Iterable[StoredTensor]) -> None:
    before: StoredTensor | None = None
    for tensor in sorted(tensors, key=lambda tensor: (tensor.path, tensor.offset)):
        if before is not None and tensor.path == before.path and tensor.offset < (end := before.offset + before.size):
            raise ModelError(
                f"{tensor.path.name} is damaged: {tensor.name} begins at byte {tensor.offset}, within {before.name}, "
                f"which ends at {end}."
            )
        before = tensor
