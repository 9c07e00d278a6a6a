"""What names a model's KV, and what names all that computes its answers.

The KV's name is the same for the same files and arithmetic, on every machine and under every path.
Content addresses build on it, so neither a path nor a time may be in it. Hashing gigabytes would delay each start, so
the tensors are sampled: training, merging and quantizing change numbers all over a file. An edit that spares the head
and every sample goes unseen; that takes a tensor of less than 1/256 of a file that alone was changed.
"""

import os
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import kernels
from configs.model.source import ModelSource
from configs.settings import Settings

_HEAD = 2**20  # bytes: names, types and shapes of the tensors, and in a GGUF file the hyperparameters
_SAMPLES = 256  # a file, evenly spaced
_SAMPLE = 4096  # bytes, one page


class KvFormat(Protocol):
    """Whoever knows what keys and values are, in numbers and order."""

    @property
    def kv_format(self) -> str:
        """The same exactly where blocks are interchangeable."""
        ...


def kv_fingerprint(source: ModelSource, settings: Settings, arithmetic: KvFormat) -> str:
    """Equal exactly if blocks of KV are interchangeable (up to the sampling above).

    Measured on the default model's 98 MB: 4-7 ms, 30 ms where nothing of it is in the page cache.

    Raises:
        OSError: a file cannot be read.
    """
    digest = blake2b(digest_size=16)
    for path in _files(source):
        digest.update(_file_digest(path))
    weights = "random" if settings.load_format == "dummy" else "stored"
    return f"{digest.hexdigest()}|{weights}|{arithmetic.kv_format}"


class Computes(KvFormat, Protocol):
    """Whoever also knows what computes."""

    @property
    def build(self) -> str:
        """The device and the code."""
        ...


def answer_fingerprint(source: ModelSource, settings: Settings, backend: Computes) -> str:
    """Names all that an answer depends on beside its request: model, arithmetic, ranks, device, code. For people, too.

    Raises:
        OSError: a file cannot be read.
    """
    return f"{kv_fingerprint(source, settings, backend)}|{backend.build}"


def build(device: str, packages: Sequence[str] = ("headrace", "torch", "triton")) -> str:
    """Names the code that computes on `device`: versions of these packages, as far as they are installed, and our kernels.

    `headrace` alone would not do: in a working copy the kernels change and its version does not.
    """
    versions = [f"{name} {found}" for name in packages if (found := _version(name))]
    return ", ".join([device, *versions, f"kernels {_kernels()}"])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _kernels() -> str:
    """Of the sources: a library or a Triton kernel is built from them as they are."""
    folder = Path(kernels.__file__).parent
    digest = blake2b(digest_size=8)
    for path in sorted(path for kind in ("py", "h", "cpp") for path in folder.rglob(f"*.{kind}")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _files(source: ModelSource) -> list[Path]:
    """Files that the KV depends on; a tokenizer turns text into ids and changes nothing about the KV of ids."""
    if source.kind == "gguf":
        return [source.path]
    return [source.path / "config.json", *sorted(source.path.glob("*.safetensors"))]


def _file_digest(path: Path) -> bytes:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8, "little"))
        digest.update(file.read(_HEAD))
        for position in _positions(size):
            file.seek(position)
            digest.update(file.read(_SAMPLE))
    return digest.digest()


def _positions(size: int) -> Iterator[int]:
    """Where samples begin: from the end of the head to the file's last page; a short file is read whole."""
    rest = max(0, size - _HEAD)
    step = max(_SAMPLE, rest // _SAMPLES)
    yield from range(_HEAD, size, step)
