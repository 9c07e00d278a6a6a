"""Two names: one of a model's KV, one of everything that computes its answers.

The KV's name is the same for the same numbers and arithmetic, on every machine, under every path, in however many shards. Content
addresses build on it, so it may contain neither a path nor a time (a copy has another time, and a time says nothing of contents).
It is made of the description, and of each tensor's name, type, shape and values. Small ones (norms, biases, factors) are
hashed whole, large ones at samples, since hashing gigabytes would delay each start; in models of up to 1 GiB they are added
up besides, so that any changed value is noticed, and so are rows that change places. In larger models a change goes unseen
if it is confined to the values between two samples of large tensors, a 31st of the tensor apart: single weights of a
matrix, or a few rows. Training, merging and quantizing change numbers all over a matrix.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from hashlib import blake2b, sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

import kernels
from configs.model.config import ModelConfig
from configs.model.encoder import EncoderConfig
from configs.model.gguf_header import GgufHeader, read_gguf_header
from configs.model.safetensors_header import has_safetensors, read_safetensors
from configs.model.source import ModelError, ModelSource
from configs.model.stored_tensor import StoredTensor
from configs.settings import Settings
from engine.loading.gguf_tensors import gguf_tensors

_WHOLE = 2**16  # bytes: a norm of a model 16,384 wide in fp32
_SAMPLES = 32  # of a larger tensor, evenly spaced, its two ends among them
_SAMPLE = 1024  # bytes; few samples lie across two pages
_SUMMED = 2**30  # bytes of all tensors together: a tenth of a second
# Bytes: 512 words, each added to those in its place in the other pages, times an odd number of its page's own.
_PAGE = 4096
_PAGES = 128  # added up at once, in a buffer that stays in cache
# How long a sequence may be, what ends it, what vectors are made of; the type that a GPU computes in is in the format.
_NOT_OF_KV = {"max_position", "ends", "dtype", "pooling"}
_TEXTS = ("*.json", "*.jinja")  # of a folder: how its text becomes ids, what ends an answer


class KvFormat(Protocol):
    """Anything that knows how keys and values are stored."""

    @property
    def kv_format(self) -> str:
        """Equal exactly where blocks are interchangeable."""
        ...


class FormatAndBuild(KvFormat, Protocol):
    """Anything that also knows what computes; a backend."""

    @property
    def adapters(self) -> Mapping[str, str]:
        """The LoRA adapters: the digest of each one's contents by its name."""
        ...

    @property
    def build(self) -> str:
        """The device and the code."""
        ...


class Fingerprints(NamedTuple):
    """The two names.

    Attributes:
        kv: equal exactly where blocks of KV are interchangeable (up to the sampling above).
        answer: all that an answer depends on besides its request: model, adapters, texts, arithmetic, ranks, device, code.
            Readable, too.
    """

    kv: str
    answer: str


def fingerprints(
    source: ModelSource, config: ModelConfig | EncoderConfig, settings: Settings, backend: FormatAndBuild
) -> Fingerprints:
    """Read both names off a model's files.

    Args:
        source: the model's files.
        config: their description.
        settings: say whether the weights are those of the files, how content becomes ids, and may name another chat template.
        backend: how keys and values are computed and stored, and by what.

    Raises:
        ModelError: the files are damaged.
        OSError: a file cannot be read.
    """
    header = read_gguf_header(source.path) if source.kind == "gguf" else None
    digest, weights = sha256(_description(config).encode()), "random"  # which follow from the description alone
    if settings.load_format != "dummy":
        weights = "stored"
        for piece in _contents(_tensors(source, header)):
            digest.update(piece)
    texts = sha256()
    for text in _texts(source, header, settings):
        texts.update(sha256(text).digest())
    texts.update(settings.content_special_tokens.encode())
    kv = f"{digest.hexdigest()[:32]}|{weights}|{backend.kv_format}"
    adapters = "".join(f"|adapter {name} {digest}" for name, digest in sorted(backend.adapters.items()))
    return Fingerprints(kv, f"{kv}{adapters}|texts {texts.hexdigest()[:16]}|{backend.build}")


def build(device: str, packages: Sequence[str] = ("headrace", "torch", "triton", "llguidance")) -> str:
    """Names the code that computes on `device`: the versions of those `packages` that are installed, and our kernels. A grammar's
    masks, and how it spells what must follow, are llguidance's.

    The version of `headrace` alone would not do: in a working copy the kernels change and it does not.
    """
    versions = [f"{name} {found}" for name in packages if (found := _version(name))]
    return ", ".join([device, *versions, f"kernels {_kernels()}"])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _kernels() -> str:
    """A digest of the kernels' sources: libraries and Triton kernels are built from them as they are."""
    folder = Path(kernels.__file__).parent
    digest = blake2b(digest_size=8)
    for path in sorted(path for kind in ("py", "h", "cpp") for path in folder.rglob(f"*.{kind}")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _description(config: ModelConfig | EncoderConfig) -> str:
    """All that the numbers depend on besides the weights: sizes, rotary settings, windows, epsilon."""
    said = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in _NOT_OF_KV}
    return repr(sorted(said.items()))


def _tensors(source: ModelSource, header: GgufHeader | None) -> Iterable[StoredTensor]:
    if header is not None:
        return gguf_tensors(header).values()
    return read_safetensors(source.path).values() if has_safetensors(source.path) else ()


def _contents(tensors: Iterable[StoredTensor]) -> Iterator[bytes]:
    """What tensors are and hold, by their names, wherever they are stored.

    Measured on the embedded model, 272 tensors in 98 MB: its header is read in 35 ms, 7 MB are hashed in 14 ms and all of it is
    added up in 15 ms. A model of 100 GB has some 560 large tensors, two and a half times as many to hash. Its pages are
    there, since the weights have just been read; where they do not fit into memory, a sample takes a read of the disk (0.25
    ms where measured). Files are read, not mapped: the system maps 15 more pages around each one that is looked at, which made
    the samples of a file of 1.1 GB 250 MB of this process's memory.
    """
    found = sorted(tensors, key=lambda tensor: tensor.name)
    summed = sum(tensor.size for tensor in found) <= _SUMMED
    with ExitStack() as stack:
        files: dict[Path, int] = {}
        for tensor in found:
            if tensor.path not in files:
                files[tensor.path] = stack.enter_context(tensor.path.open("rb", buffering=0)).fileno()
            yield f"{tensor.name}|{tensor.kind}|{tensor.shape}|".encode()
            for start, length in _stretches(tensor.size):
                yield _part(files[tensor.path], tensor, start, length)
            if summed and tensor.size > _WHOLE:
                yield _sums(files[tensor.path], tensor)


def _sums(file: int, tensor: StoredTensor) -> bytes:
    """Its pages added up, as 64-bit words, and what is left behind the last page."""
    pages, sums = tensor.size // _PAGE, np.zeros(_PAGE // 8, np.uint64)
    for first in range(0, pages, _PAGES):
        count = min(_PAGES, pages - first)
        words = np.frombuffer(_part(file, tensor, first * _PAGE, count * _PAGE), np.uint64)
        odd = np.arange(2 * first + 1, 2 * (first + count), 2, dtype=np.uint64)
        sums += np.einsum("p,pw->w", odd, words.reshape(count, -1))
    return sums.tobytes() + _part(file, tensor, pages * _PAGE, tensor.size % _PAGE)


def _part(file: int, tensor: StoredTensor, start: int, length: int) -> bytes:
    """These bytes of a tensor, of which its header had said that they are there."""
    found = os.pread(file, length, tensor.offset + start)
    if len(found) < length:
        raise ModelError(f"{tensor.path} ends within {tensor.name!r}: it was cut short while it was read")
    return found


def _stretches(size: int) -> Iterator[tuple[int, int]]:
    """Beginning and length, in bytes, of what is hashed of a tensor."""
    if size <= _WHOLE:
        yield 0, size
        return
    for sample in range(_SAMPLES):
        yield (size - _SAMPLE) * sample // (_SAMPLES - 1), _SAMPLE


def _texts(source: ModelSource, header: GgufHeader | None, settings: Settings) -> Iterator[bytes]:
    """What turns requests into ids and ids into answers: vocabulary, templates, end tokens."""
    if settings.chat_template is not None:
        yield Path(settings.chat_template).read_bytes()
    if header is not None:
        with header.path.open("rb") as file:  # of a split model the first part, which has all of that
            yield file.read(_header_bytes(header))
        return
    for path in sorted(path for kind in _TEXTS for path in source.path.glob(kind)):
        yield path.name.encode()
        yield path.read_bytes()


def _header_bytes(header: GgufHeader) -> int:
    """How long the header of the first file is: up to its first tensor, or all of it if it has none."""
    offsets = (info.offset for info in header.tensors.values() if info.path == header.path)
    return min(offsets, default=header.path.stat().st_size)
