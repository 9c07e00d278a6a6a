"""The poolers that a decoder has, for workers on every kind of device. An encoder's are in `engine.encoder.backend`."""

from configs.model.config import ModelConfig
from engine.pooling.pooler import Pooler
from engine.pooling.vectors import vector_pooler


def standard_poolers(config: ModelConfig) -> list[Pooler]:
    """A new set of all poolers, for one model: a decoder makes vectors beside tokens."""
    return [vector_pooler(config.pooling)]
