"""Random weights of the right shapes, for measuring and testing without a checkpoint."""

from collections.abc import Mapping

import torch
from torch import Tensor

from configs.model.config import ModelConfig
from engine.loading.reader import Assemble, Loaded_co, in_fp32
from engine.loading.stored import GroupKind, StoredMatrix
from engine.models.family import Shape
from engine.models.layout import expected_shapes, norm_names

_SPREAD = 0.02  # as in transformers' own initialization: activations neither vanish nor overflow


def load_dummy(config: ModelConfig, assemble: Assemble[Loaded_co]) -> Loaded_co:
    """What `assemble` makes of weights drawn from a normal distribution; the same description gives the same ones."""
    return assemble(_Random(config), config)


class _Random:
    """A `TensorReader` whose tensors depend only on their names, not on the order of reading."""

    def __init__(self, config: ModelConfig) -> None:
        self.shapes: Mapping[str, Shape] = expected_shapes(config)
        self._norms = norm_names(config)
        self._seeds = {name: seed for seed, name in enumerate(self.shapes)}

    rope_factors: Tensor | None = None

    def blocks(self, name: str) -> StoredMatrix | None:
        return None

    def group_kind(self, name: str) -> GroupKind | None:
        return None

    def groups(self, name: str) -> Tensor:
        raise AssertionError(f"{name} has no groups")

    def read_into(self, name: str, out: Tensor) -> None:
        if name in self._norms:
            out.fill_(1.0)
        else:
            with in_fp32(out) as values:
                values.normal_(0.0, _SPREAD, generator=torch.Generator().manual_seed(self._seeds[name]))

    def whole(self, name: str) -> Tensor | None:
        return None

    def forget(self, name: str) -> None:
        """Nothing: it is drawn anew."""
