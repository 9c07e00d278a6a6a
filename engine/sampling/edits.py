"""What an edit of the logits is, and the one way in which edits add to them.

An edit is a small object for one concern of `SamplingParams`. It touches only the rows of sequences that ask for it
and, in them, only the tokens it is about. Masking *adds* -inf, so that a NaN or +inf beneath stays visible to the
health check that follows.
"""

from collections.abc import Collection, Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.sequence import Sequence

IdArray = npt.NDArray[np.int64]
ValueArray = npt.NDArray[np.float32]


class Edit(Protocol):
    """One concern. It may keep state per request id, which `forget` drops; it never changes a sequence."""

    def wants(self, sequence: Sequence) -> bool:
        """Whether this sequence's next token needs the edit."""

    def apply(self, logits: Tensor, rows: list[int], sequences: list[Sequence]) -> None:
        """Change `logits` [all rows, vocabulary] fp32 in place; `sequences[i]` is the one of row `rows[i]`."""

    def forget(self, request_id: str) -> None:
        """Drop what is kept for the request, if anything."""


def known_ids(ids: Collection[int], vocab_size: int) -> IdArray:
    """`ids` without those beyond the vocabulary: the model cannot produce them, so there is nothing to edit."""
    return np.fromiter((token for token in ids if 0 <= token < vocab_size), dtype=np.int64)


def coordinates(rows: Iterable[int], ids: list[IdArray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Index pair (row of each id, ids) of the concatenated `ids`, one array for each row; both int64."""
    lengths = [len(array) for array in ids]
    row_of_id = np.repeat(np.fromiter(rows, dtype=np.int64), lengths)
    return torch.from_numpy(row_of_id).to(device), torch.from_numpy(np.concatenate(ids)).to(device)


def mask(logits: Tensor, rows: list[int], ids: list[IdArray]) -> None:
    """Add -inf to `ids[i]` of row `rows[i]`, in place. Duplicates are harmless."""
    where = coordinates(rows, ids, logits.device)
    logits.index_put_(where, logits.new_tensor(float("-inf")), accumulate=True)
