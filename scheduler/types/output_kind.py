"""What a request produces: tokens, or numbers that are pooled from its prompt."""

from dataclasses import dataclass
from enum import StrEnum


class OutputKind(StrEnum):
    """What a request produces."""

    TOKENS = "tokens"  # step by step
    VECTOR = "vector"  # one embedding of the prompt
    SCORES = "scores"  # one number for each label or document


@dataclass(slots=True, kw_only=True)
class Pooled:
    """The whole result of a request that produces no tokens: the numbers of one vector, or the scores."""

    kind: OutputKind
    values: list[float]
