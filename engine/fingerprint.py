"""Two names: one of a model's KV, one of everything that computes its answers.

The KV's name is the same for the same files and arithmetic, on every machine and under every path. Content addresses build on it,
so it may contain neither a path nor a time. Hashing gigabytes would delay each start, so the tensors are sampled: training, merging
and quantizing change numbers all over a file. An edit that misses the head and every sample goes unseen; each stretch that it
changes is then shorter than 1/256 of the file, or than a page.
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
_SAMPLES = 256  # per file, evenly spaced
_SAMPLE = 4096  # bytes, one page


class KvFormat(Protocol):
    """Anything that knows how keys and values are stored."""

    @property
    def kv_format(self) -> str:
        """Equal exactly where blocks are interchangeable."""
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


class FormatAndBuild(KvFormat, Protocol):
    """Anything that also knows what computes; a backend."""

    @property
    def build(self) -> str:
        """The device and the code."""
        ...


def answer_fingerprint(source: ModelSource, settings: Settings, backend: FormatAndBuild) -> str:
    """Names all that an answer depends on besides its request: model, arithmetic, ranks, device, code. Readable by people, too.

    Raises:
        OSError: a file cannot be read.
    """
    return f"{kv_fingerprint(source, settings, backend)}|{backend.build}"


def build(device: str, packages: Sequence[str] = ("headrace", "torch", "triton")) -> str:
    """Names the code that computes on `device`: the versions of those `packages` that are installed, and our kernels.

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


def _files(source: ModelSource) -> list[Path]:
    """The files that the KV depends on; a tokenizer turns text into ids and does not change the KV of ids."""
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
