"""How far a model's weights are read, as a part of all their values."""

import threading
from collections.abc import Callable, Mapping
from math import prod

from torch import Tensor

from configs.model.config import ModelConfig
from engine.loading.reader import Assemble, Loaded_co, TensorReader
from engine.loading.stored import GroupKind, StoredMatrix
from engine.models.family import Shape

Tell = Callable[[float], None]  # takes a part, 0 to 1; called from the threads that read


def watched(assemble: Assemble[Loaded_co], tell: Tell) -> Assemble[Loaded_co]:
    """An `assemble` that tells after each tensor how much has been read; what is read twice counts once."""

    def assemble_told(reader: TensorReader, config: ModelConfig) -> Loaded_co:
        return assemble(_Watched(reader, tell), config)

    return assemble_told


class _Watched:
    """A `TensorReader` over another one."""

    def __init__(self, reader: TensorReader, tell: Tell) -> None:
        self._reader = reader
        self._tell = tell
        self._lock = threading.Lock()
        self.shapes: Mapping[str, Shape] = reader.shapes
        self.rope_factors: Tensor | None = reader.rope_factors
        self._unread = {name: prod(shape) for name, shape in reader.shapes.items()}
        self._all = sum(self._unread.values())
        self._left = self._all

    def blocks(self, name: str) -> StoredMatrix | None:
        return self._reader.blocks(name)

    def group_kind(self, name: str) -> GroupKind | None:
        return self._reader.group_kind(name)

    def groups(self, name: str) -> Tensor:
        groups = self._reader.groups(name)
        self._read(name)
        return groups

    def read_into(self, name: str, out: Tensor) -> None:
        self._reader.read_into(name, out)
        self._read(name)

    def whole(self, name: str) -> Tensor | None:
        whole = self._reader.whole(name)
        if whole is not None:
            self._read(name)
        return whole

    def forget(self, name: str) -> None:
        self._reader.forget(name)
        self._read(name)

    def _read(self, name: str) -> None:
        with self._lock:  # so that what is told never goes back
            self._left -= self._unread.pop(name, 0)
            self._tell(1 - self._left / self._all)
