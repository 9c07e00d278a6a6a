"""What an edit of the logits is, on the host and on a device.

An edit is a small object for one concern of `SamplingParams` (its file is beside this one, its line in
`engine.sampling.registry`). It touches only the rows of requests that it concerns and, in them, only the tokens it is
about. Most edits add to logits and say what they add (`AddingEdit`): both kinds of sampler then do the same with it. What an edit
of another kind does is done on the host, unless a kernel does it: a device has the host draw for requests that it concerns.
Masking *adds* -inf, so that a NaN or +inf underneath stays visible to the health check that follows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.sequence import Sequence as TokenSequence
from scheduler.types.sampling_params import SamplingParams

IdArray = npt.NDArray[np.int64]
ValueArray = npt.NDArray[np.float32]
MaskArray = npt.NDArray[np.int32]  # [rows, words]: 32 tokens a word, the first in its lowest bit
Masker = Callable[[Tensor, Sequence[int], MaskArray], None]


class Additions(NamedTuple):
    """What is added to one row of logits: `values` [n] to the tokens `ids` [n]. An id may come twice."""

    ids: IdArray
    values: ValueArray


NOTHING = Additions(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))


class Edit(Protocol):
    """One concern. It may keep state per request id, which `forget` drops; it never changes a sequence.

    Edits that a kernel makes come after all others, on either device.

    Attributes:
        in_kernel: whether the device's sampling kernel makes this edit itself, from the request's settings and the counts of
            its tokens on the device.
    """

    in_kernel: bool

    def concerns(self, sampling: SamplingParams) -> bool:
        """Whether a request with these settings may need the edit, at any of its tokens."""
        ...

    def apply(self, logits: Tensor, rows: list[int], sequences: list[TokenSequence]) -> None:
        """The host's form: change `logits` [all rows, vocabulary] fp32 in place; row `rows[i]` belongs to `sequences[i]`."""
        ...

    def forget(self, request_id: str) -> None:
        """Drop what is kept for the request, if anything."""
        ...


class AddingEdit(ABC):
    """An edit that adds to logits. Subclasses say what, and both forms follow.

    Attributes:
        needs_host_tokens: whether `additions` reads the sequence's sampled tokens. A worker with steps in flight, whose
            newest tokens may be known only on the device, waits for them before it asks.
    """

    needs_host_tokens: bool = False
    in_kernel: bool = False

    @abstractmethod
    def concerns(self, sampling: SamplingParams) -> bool:
        """Whether a request with these settings may need the edit, at any of its tokens."""

    @abstractmethod
    def additions(self, sequence: TokenSequence, length: int) -> Additions:
        """What to add for the token at position `length` of the sequence.

        `sequence.tokens` may be shorter than `length`, unless `needs_host_tokens`.
        """

    def apply(self, logits: Tensor, rows: list[int], sequences: list[TokenSequence]) -> None:
        """Add to `logits` [all rows, vocabulary] fp32 in place."""
        added = [self.additions(sequence, len(sequence.tokens)) for sequence in sequences]
        where = coordinates(rows, [ids for ids, _ in added], logits.device)
        values = torch.from_numpy(np.concatenate([values for _, values in added])).to(logits.device)
        logits.index_put_(where, values, accumulate=True)

    def forget(self, request_id: str) -> None:  # noqa: B027 - most keep nothing
        """Drop what is kept for the request, if anything."""


class MaskingEdit(ABC):
    """An edit that allows some tokens and masks all others. Subclasses say which, and both forms follow.

    It reads the sequence's sampled tokens: a worker with steps in flight waits for them.

    Args:
        masker: how logits are masked where they are; None: by `mask_rows`.
    """

    in_kernel: bool = False

    def __init__(self, masker: Masker | None = None) -> None:
        self._masker = masker or mask_rows

    @abstractmethod
    def concerns(self, sampling: SamplingParams) -> bool:
        """Whether a request with these settings may need the edit, at any of its tokens."""

    @abstractmethod
    def masks(self, sequences: Sequence[TokenSequence]) -> MaskArray:
        """Which tokens may follow each sequence: bit `i % 32` of word `i // 32` stands for token `i`."""

    @abstractmethod
    def complete(self, sequence: TokenSequence) -> bool:
        """Whether nothing may follow the tokens of the sequence, which then ends."""

    @abstractmethod
    def only(self, sequence: TokenSequence) -> int | None:
        """The token that must follow, where that is known without a mask."""

    def apply(self, logits: Tensor, rows: list[int], sequences: list[TokenSequence]) -> None:
        """Mask what is not allowed in `logits` [all rows, vocabulary] fp32, in place."""
        self._masker(logits, rows, self.masks(sequences))

    def forget(self, request_id: str) -> None:  # noqa: B027 - some keep nothing
        """Drop what is kept for the request, if anything."""


def known_ids(ids: Collection[int], vocab_size: int) -> IdArray:
    """`ids` without those beyond the vocabulary: the model cannot produce them, so there is nothing to edit."""
    return np.fromiter((token for token in ids if 0 <= token < vocab_size), dtype=np.int64)


def masked(ids: IdArray) -> Additions:
    """-inf for each of `ids`."""
    return Additions(ids, np.full(len(ids), -np.inf, dtype=np.float32))


def mask_rows(logits: Tensor, rows: Sequence[int], allowed: MaskArray) -> None:
    """Add -inf to what is not allowed in these rows of `logits` [all rows, vocabulary] fp32, in place.

    On the host numpy does it, a row at a time, which stays in the cache: torch wakes its threads for so many numbers, which took
    eight times as long.
    """
    barred = np.unpackbits(~allowed.view(np.uint8), axis=1, bitorder="little", count=logits.shape[1]).view(np.bool_)
    for row, tokens in zip(rows, barred, strict=True):
        if logits.device.type == "cpu":
            numbers = logits[row].numpy()
            with np.errstate(invalid="ignore"):  # of +inf, which becomes NaN
                np.add(numbers, -np.inf, out=numbers, where=tokens)
        else:
            logits[row].add_(torch.where(torch.from_numpy(tokens).to(logits.device), float("-inf"), 0.0))


def coordinates(rows: Iterable[int], ids: Sequence[IdArray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Index pair (row of each id, ids) of the concatenated `ids`, one array for each row; both int64."""
    lengths = [len(array) for array in ids]
    row_of_id = np.repeat(np.fromiter(rows, dtype=np.int64), lengths)
    return torch.from_numpy(row_of_id).to(device), torch.from_numpy(np.concatenate(ids)).to(device)
