"""The poolers that a server has, for workers on every kind of device."""

from configs.model.config import ModelConfig
from engine.pooling.pooler import Pooler


def standard_poolers(config: ModelConfig) -> list[Pooler]:
    """A new set of all poolers, for one model. There are none yet: a model makes tokens."""
    return []
