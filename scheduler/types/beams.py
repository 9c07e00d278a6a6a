"""What a request asks of beam search: plain data."""

from dataclasses import dataclass
from typing import Literal

# Whether the search ends as soon as it has as many whole texts as beams; or when it is unlikely that a better one follows; or only
# when none can (transformers' `early_stopping` True, False and "never").
EarlyStopping = Literal["always", "likely", "never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamParams:
    """One of the sequences that a search answers. They are added one after the other and end together, the best first by `rank`."""

    group: str  # of all its sequences; unique
    rank: int  # 0 to answers - 1
    answers: int  # sequences that are answered, at most `width`
    width: int  # beams
    length_penalty: float = 1.0  # a text's score is its log probability over its number of tokens to this power
    early_stopping: EarlyStopping = "likely"
