"""Sampling on the GPU: what `engine/sampling/sampler.py` does, by the kernels in `kernels/gpu/sampling/sample.py`, without waiting.

Order and definitions are the host sampler's. Greedy rows give the same tokens; rows that draw follow the same distribution with
other random numbers, since the device uses the Gumbel-max trick where the host inverts the distribution. So the same seed gives the
same text on the same kind of device, in any batch, after preemption and after a restart, but a different one on a CPU.

The host's sampler draws all tokens of a request that wants more log-probabilities than the kernel lists, which needs a sort, and of
one with an edit that neither adds to logits, nor masks them, nor is made by the kernel.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from engine.gpu.events import AsyncCopy
from engine.sampling.edits import AddingEdit, Edit, IdArray, MaskArray, MaskingEdit, ValueArray
from engine.sampling.sampler import ALL_MASKED, NOT_FINITE, Sampled
from engine.sequence import Sequence
from kernels.gpu.runtime import sent
from kernels.gpu.sampling import sample as device
from kernels.gpu.sampling.bitmask import apply_bitmask
from kernels.gpu.sampling.penalties import count_tokens
from kernels.gpu.sampling.sample import BatchSettings, RowSettings, sample
from kernels.gpu.sampling.token_logprobs import MOST, token_logprobs
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import TokenLogprobs

_ERRORS = {device.ALL_MASKED: ALL_MASKED, device.NOT_FINITE: NOT_FINITE}
_WIDTHS = (0, 5, 20, MOST)  # numbers of likeliest tokens that a kernel lists, each by a build of its own
_FIRST_SLOTS = 16
_NO_SLOT = -1


@dataclass(slots=True, eq=False)
class Member:
    """A sequence as the GPU's worker keeps it.

    Attributes:
        sequence: as far as the host knows it.
        place: its entry in the table of newest tokens.
        settings: what it asks of the kernels.
        edits: those that apply to it and add to its logits.
        masking: those that apply to it and allow some tokens only.
        by_host: whether the host draws its tokens.
        needs_host_tokens: whether its next token cannot be drawn before the host knows all others.
        slot: its row of token counts; -1: it has none.
        ahead: how many tokens have been sampled that the host does not know yet.
    """

    sequence: Sequence
    place: int
    settings: RowSettings
    edits: tuple[AddingEdit, ...]
    masking: tuple[MaskingEdit, ...]
    by_host: bool
    slot: int = _NO_SLOT
    ahead: int = 0
    needs_host_tokens: bool = field(init=False)

    def __post_init__(self) -> None:
        reads = any(edit.needs_host_tokens for edit in self.edits)
        self.needs_host_tokens = self.by_host or bool(self.masking) or reads

    @property
    def length(self) -> int:
        """How many tokens it has, known to the host or not."""
        return len(self.sequence.tokens) + self.ahead


def _row_settings(sampling: SamplingParams) -> RowSettings:
    return RowSettings(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition=sampling.repetition_penalty,
        presence=sampling.presence_penalty,
        frequency=sampling.frequency_penalty,
        seed=sampling.seed,
        slot=_NO_SLOT,
    )


class TokenCounts:
    """Token counts of the requests with penalties, int32 [slots, vocab] on the device; grows with their number."""

    def __init__(self, vocab_size: int, target: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = target
        self._free: list[int] = []
        self.table: Tensor | None = None

    def slot_of(self, sequence: Sequence) -> int:
        """A slot, with the counts of the sequence as far as the host knows it."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        assert self.table is not None
        self.table[slot].zero_()
        for tokens, output in (
            (sequence.tokens[: sequence.prompt_length], False),
            (sequence.tokens[sequence.prompt_length :], True),
        ):
            ids = sent(torch.tensor(tokens, dtype=torch.int64), self._device)
            count_tokens(self.table, torch.full_like(ids, slot), ids, output=output)
        return slot

    def release(self, slot: int) -> None:
        """Free the slot of a request that has ended."""
        self._free.append(slot)

    def _grow(self) -> None:
        have = 0 if self.table is None else len(self.table)
        more = torch.zeros(max(have, _FIRST_SLOTS), self._vocab_size, dtype=torch.int32, device=self._device)
        self.table = more if self.table is None else torch.cat((self.table, more))
        self._free += range(have, len(self.table))


class Draw:
    """The outcome of one step: tokens and log-probabilities, on their way to the host in one copy."""

    def __init__(self, tokens: Tensor, described: list[int], lists: tuple[Tensor, ...]) -> None:
        self._count = len(tokens)
        self._described = described  # rows with log-probabilities
        parts = [tokens.int(), *(part.flatten().view(torch.int32) for part in lists)]
        self._copy = AsyncCopy(torch.cat(parts) if lists else parts[0])

    def wait(self, members: list[Member]) -> list[Sampled]:
        """Wait for what each row brought; `members` are those of the rows."""
        values = self._copy.wait().numpy()
        described = self._logprobs(values, members)
        return [
            Sampled(token, described.get(row)) if token >= 0 else Sampled(token, error=_ERRORS[token])
            for row, token in enumerate(values[: self._count].tolist())
        ]

    def _logprobs(self, values: np.ndarray, members: list[Member]) -> dict[int, TokenLogprobs]:
        rows = len(self._described)
        if not rows:
            return {}
        tokens, rest = values[: self._count], values[self._count :]
        top = (len(rest) - 2 * rows) // (2 * rows)
        ends = np.cumsum([rows, rows, rows * top])
        chosen, ranks, ids, logprobs = np.split(rest, ends)
        found = {}
        for index, row in enumerate(self._described):
            wanted = slice(index * top, index * top + (members[row].sequence.sampling.logprobs or 0))
            likeliest = zip(ids[wanted].tolist(), logprobs.view(np.float32)[wanted].tolist(), strict=True)
            found[row] = TokenLogprobs(
                token_id=int(tokens[row]),
                logprob=float(chosen.view(np.float32)[index]),
                rank=int(ranks[index]),
                top=[(token, logprob) for token, logprob in likeliest if token >= 0],
            )
        return found


class GpuSampler:
    """Draws one token per row on the device that holds the logits.

    Args:
        vocab_size: of the model.
        edits: of the logits; the kernel makes some of them itself, from a row's settings.
        target: the device.
    """

    def __init__(self, vocab_size: int, edits: Iterable[Edit], target: torch.device) -> None:
        self._vocab_size = vocab_size
        self._edits = tuple(edits)
        self._device = target
        self._counts = TokenCounts(vocab_size, target)
        self._members: list[Member] = []  # of the last draw without drafts
        self._lengths: list[int] = []
        self._settings: BatchSettings | None = None

    def member(self, sequence: Sequence, place: int) -> Member:
        """Start keeping `sequence`; `place` is its entry in the table of newest tokens."""
        sampling = sequence.sampling
        edits = [edit for edit in self._edits if not edit.in_kernel and edit.concerns(sampling)]
        adding = tuple(edit for edit in edits if isinstance(edit, AddingEdit))
        masking = tuple(edit for edit in edits if isinstance(edit, MaskingEdit))
        by_host = (sampling.logprobs or 0) > MOST or len(adding) + len(masking) < len(edits)
        return Member(sequence, place, _row_settings(sampling), adding, masking, by_host)

    def sample(self, logits: Tensor, members: list[Member], *, verifying: bool = False) -> tuple[Tensor, Draw]:
        """Draw for each row of `logits`, [rows, vocab] of any float type, which may be modified; the caller counts the tokens as
        `ahead`.

        Args:
            logits: of the rows. Those that an edit changes are in fp32, whatever the model's type.
            members: those of the rows.
            verifying: drafts follow the rows; the members of the last draw without drafts stay those to expect next.

        Returns:
            int64 [rows] on the device (an error is a negative number), and the same on its way to the host.
        """
        settings = self._settings_anew(members) if verifying else self._settings_of(members)
        described = [row for row, member in enumerate(members) if member.sequence.sampling.logprobs is not None]
        added = _additions(members)
        masked = _masks(members)
        raw = logits
        if added or masked:  # a bias may be less than 16 bits tell apart
            logits = logits.to(torch.float32, copy=bool(described))
        for mask_rows, masks in masked:
            apply_bitmask(logits, *(sent(torch.from_numpy(part), self._device) for part in (mask_rows, masks)))
        if added:
            rows, ids, values = (sent(torch.from_numpy(part), self._device) for part in added)
            logits.index_put_((rows, ids), values, accumulate=True)
        tokens = sample(logits, settings, self._counts.table)
        if settings.penalized and self._counts.table is not None:
            count_tokens(self._counts.table, settings.ints[:, 3].contiguous(), tokens, output=True)
        return tokens, Draw(tokens, described, self._describe(raw, tokens, members, described))

    def warm_up(self) -> None:
        """Run what no request without a grammar needs: the kernel that masks, in fp32."""
        logits = torch.zeros(1, self._vocab_size, device=self._device)
        masks = torch.full((1, -(-self._vocab_size // 32)), -1, dtype=torch.int32, device=self._device)
        apply_bitmask(logits, torch.zeros(1, dtype=torch.int64, device=self._device), masks)

    def forget(self, member: Member) -> None:
        """Drop what is kept for a request."""
        for edit in self._edits:
            edit.forget(member.sequence.request_id)
        if member.slot != _NO_SLOT:
            self._counts.release(member.slot)
            member.slot = _NO_SLOT
        if member in self._members:
            self._members, self._settings = [], None

    def _settings_of(self, members: list[Member]) -> BatchSettings:
        """The rows' settings: if the rows are those of the last draw, its settings moved on by one token."""
        lengths = [member.length for member in members]
        if self._settings is not None and members == self._members and lengths == [n + 1 for n in self._lengths]:
            self._settings.advance()
            self._lengths = lengths
            return self._settings
        self._members, self._lengths = list(members), lengths
        self._settings = self._settings_anew(members)
        return self._settings

    def _settings_anew(self, members: list[Member]) -> BatchSettings:
        for member in members:
            if member.settings.penalized and member.slot == _NO_SLOT:
                member.slot = self._counts.slot_of(member.sequence)
        rows = [replace(member.settings, position=member.length, slot=member.slot) for member in members]
        return BatchSettings.of(rows, self._device)

    def _describe(self, raw: Tensor, tokens: Tensor, members: list[Member], described: list[int]) -> tuple[Tensor, ...]:
        """For the rows that want them: the token's log-probability, its rank, the likeliest ids and their log-probabilities."""
        if not described:
            return ()
        most = max(members[row].sequence.sampling.logprobs or 0 for row in described)
        top = min(next(width for width in _WIDTHS if most <= width), self._vocab_size)
        if len(described) < len(members):
            picked = sent(torch.tensor(described), self._device)
            raw, tokens = raw[picked], tokens[picked]
        return token_logprobs(raw, tokens, top)


def _additions(members: list[Member]) -> tuple[IdArray, IdArray, ValueArray] | None:
    """(row of each id, ids, what to add to their logits); None where there is nothing to add."""
    rows: list[int] = []
    ids: list[IdArray] = []
    values: list[ValueArray] = []
    for row, member in enumerate(members):
        for edit in member.edits:
            added = edit.additions(member.sequence, member.length)
            if len(added.ids):
                rows += [row] * len(added.ids)
                ids.append(added.ids)
                values.append(added.values)
    if not rows:
        return None
    return np.array(rows, dtype=np.int64), np.concatenate(ids), np.concatenate(values)


def _masks(members: list[Member]) -> list[tuple[IdArray, MaskArray]]:
    """(rows, their masks) of each edit that masks; all rows of one edit together, since they are made in parallel."""
    rows_of: dict[MaskingEdit, list[int]] = {}
    for row, member in enumerate(members):
        for edit in member.masking:
            rows_of.setdefault(edit, []).append(row)
    return [
        (np.array(rows, dtype=np.int64), edit.masks([members[row].sequence for row in rows]))
        for edit, rows in rows_of.items()
    ]
