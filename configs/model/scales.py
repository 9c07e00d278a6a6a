"""Numbers by which model families scale and cap what they compute, and how their files give them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from configs.model.fields import Fields
from configs.model.source import ModelError

Number = Callable[[Fields], float | None]  # reads one off a model's description; None: it has none


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """What one model scales and caps. None: nothing, as most models do.

    Attributes:
        embedding_scale: factor on the embeddings.
        attention_scale: factor on the attention scores; None: head_dim ** -0.5.
        attention_soft_cap: attention scores s become cap * tanh(s / cap).
        final_soft_cap: likewise the logits.
        residual_scale: factor on what attention and MLP add to the residual.
        logit_scale: factor on the logits, before any cap.
    """

    embedding_scale: float | None = None
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None
    residual_scale: float | None = None
    logit_scale: float | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ModelError(f"the model's {name} is {value}; it must be a positive number.")


UNSCALED = Scales()


def none(fields: Fields) -> None:
    """No number, whatever the file says."""
    del fields


def given(key: str, default: float | None = None) -> Number:
    """The number under a key: `default` where it is left out, none where it is null or 0."""

    def number(fields: Fields) -> float | None:
        value = fields.value(key, default)
        return None if value is None else fields.number(key, default) or None

    return number


def root_of(key: str) -> Number:
    """The square root of the whole number under a key: how Gemma scales embeddings."""
    return lambda fields: fields.integer(key) ** 0.5


def inverse_root_of(key: str, default: float) -> Number:
    """One over the square root of the number under a key, or of `default`."""

    def number(fields: Fields) -> float | None:
        found = fields.number(key, default)
        if not found > 0:
            raise fields.refusal(f"{fields.key(key)} is {found}; it must be a positive number")
        return math.pow(found, -0.5)

    return number


def inverse_of(key: str) -> Number:
    """One over the number under a key, none where it is left out or 0."""

    def number(fields: Fields) -> float | None:
        divisor = given(key)(fields)
        return None if divisor is None else 1 / divisor

    return number


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleRules:
    """How one kind of file gives the `Scales` of a family's models: by a key (`given`), or derived from others."""

    embedding_scale: Number = none
    attention_scale: Number = none
    attention_soft_cap: Number = none
    final_soft_cap: Number = none
    residual_scale: Number = none
    logit_scale: Number = none

    def read(self, fields: Fields, head_dim: int) -> Scales:
        """The numbers of one model.

        Raises:
            ModelError: one of them is no positive number.
        """
        attention_scale = self.attention_scale(fields)
        return Scales(
            embedding_scale=_unless_one(self.embedding_scale(fields)),
            attention_scale=None if attention_scale == max(1, head_dim) ** -0.5 else attention_scale,
            attention_soft_cap=self.attention_soft_cap(fields),
            final_soft_cap=self.final_soft_cap(fields),
            residual_scale=_unless_one(self.residual_scale(fields)),
            logit_scale=_unless_one(self.logit_scale(fields)),
        )


def _unless_one(factor: float | None) -> float | None:
    """A factor that changes something."""
    return None if factor == 1 else factor


NO_SCALES = ScaleRules()
