"""From the last logits of each sequence to its next token.

The order is fixed, each concern an object or a function in its own file:
1. log-probabilities, of the raw logits (`logprobs`);
2. edits that add to logits: allowed tokens, `logit_bias`, bad words, `min_tokens`, the grammar's mask (`registry` lists them);
3. repetition penalty, then presence and frequency penalties (`penalties`);
4. the largest logit: it is the answer of greedy rows and the health check of all of them;
5. temperature, then min_p, then top_k, then top_p (`top_k_top_p`);
6. the draw (`draw`).

A concern looks only at the rows that ask for it: a batch of greedy rows costs one pass for the maximum. What belongs
here is the order, and who takes part. Never: a concern's arithmetic.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.sampling import draw, logprobs
from engine.sampling.edits import AddingEdit, Edit, MaskingEdit
from engine.sampling.top_k_top_p import Limits, candidates, scaled, truncates
from engine.sequence import Sequence
from scheduler.types.step import TokenLogprobs

ROWS_AT_ONCE = 8  # keeps a draw's temporaries in the cache: on a CPU, 32 rows of 49k in one piece cost twice as much
NO_TOKEN = -1  # no embedding has this row: a caller who overlooks the error fails at once
ALL_MASKED = (
    "no token can be sampled: the grammar, allowed_token_ids, logit_bias, bad_words and min_tokens together mask the whole "
    "vocabulary"
)
NOT_FINITE = "the model's logits are not finite (NaN or infinity) for this request"


@dataclass(frozen=True, slots=True)
class Sampled:
    """What came of one row: a token (with `logprobs` where asked for) or an `error`; then `token_id` is `NO_TOKEN`."""

    token_id: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None


class CpuSampler:
    """Samples one token per row, on the CPU or wherever the logits are.

    For each request it keeps only what saves counting its tokens again (`forget` drops it).

    Deterministic: the same logits, settings, seed and length of the sequence give the same token, in any batch.

    Args:
        vocab_size: of the model.
        edits: of the logits; those that a device's kernel makes come last, as there.
    """

    def __init__(self, vocab_size: int, edits: Iterable[Edit]) -> None:
        self._vocab_size = vocab_size
        self._edits = sorted(edits, key=lambda edit: edit.in_kernel)  # the order that a device has
        self._masking = [edit for edit in self._edits if isinstance(edit, MaskingEdit)]
        self._adding = [edit for edit in self._edits if isinstance(edit, AddingEdit)]

    @torch.inference_mode()
    def sample(self, logits: Tensor, sequences: list[Sequence]) -> list[Sampled]:
        """The next token of each sequence, in their order; `logits` [rows, vocabulary] fp32 may be modified.

        A row that cannot be sampled (logits not finite, every token masked) has an `error`; the others are not affected.

        Raises:
            ValueError: `logits` have another shape or type.
        """
        self._check(logits, len(sequences))
        if not sequences:
            return []
        raw = self._edit(logits, sequences)
        peak, best = logits.max(dim=-1)
        tokens: list[int] = best.tolist()
        errors = [_error(value) for value in peak.tolist()]
        drawn = [row for row, error in enumerate(errors) if error is None and not sequences[row].sampling.greedy]
        for rows in _blocks(drawn, sequences):
            ids = _draw(_pick(logits, rows), _pick(peak, rows), [sequences[row] for row in rows])
            for row, token in zip(rows, ids.tolist(), strict=True):
                tokens[row] = token
        described = _describe(raw, tokens, errors, sequences)
        return [
            Sampled(tokens[row], described.get(row)) if error is None else Sampled(NO_TOKEN, error=error)
            for row, error in enumerate(errors)
        ]

    @torch.inference_mode()
    def prompt_logprobs(self, logits: Tensor, target_ids: list[int], top: int) -> list[TokenLogprobs]:
        """For row i of `logits` [rows, vocabulary] fp32: `target_ids[i]`, which follows, and the `top` likeliest.

        Raises:
            ValueError: `logits` have another shape or type, or a row is not finite: then the request has to fail.
        """
        self._check(logits, len(target_ids))
        if not target_ids:
            return []
        for error in map(_error, logits.amax(dim=-1).tolist()):
            if error is not None:
                raise ValueError(error)
        return logprobs.describe(logits, target_ids, top)

    def certain(self, sequence: Sequence) -> Sampled | None:
        """The next token where nothing else may follow, so that no logits are needed; None: they are, or may be.

        It is what `sample` would bring, unless the model's logits are not finite, which the next row that needs them will show.
        """
        sampling = sequence.sampling
        masking = [edit for edit in self._masking if edit.concerns(sampling)]
        if not masking or sampling.logprobs is not None or any(edit.concerns(sampling) for edit in self._adding):
            return None
        token = masking[0].only(sequence)
        return None if token is None else Sampled(token)

    def complete(self, sequence: Sequence) -> bool:
        """Whether nothing may follow the tokens of a sequence, because an edit says so."""
        return any(edit.concerns(sequence.sampling) and edit.complete(sequence) for edit in self._masking)

    def forget(self, request_id: str) -> None:
        """Drop what is kept for a request. Unknown ids are ignored; if the request goes on, its tokens are counted anew."""
        for edit in self._edits:
            edit.forget(request_id)

    def _check(self, logits: Tensor, rows: int) -> None:
        if logits.shape != (rows, self._vocab_size) or logits.dtype != torch.float32:
            raise ValueError(
                f"logits are {logits.dtype} {list(logits.shape)}, expected torch.float32 {[rows, self._vocab_size]}: "
                "pass one fp32 row for each sequence"
            )

    def _edit(self, logits: Tensor, sequences: list[Sequence]) -> Tensor:
        """Edit in place. Returns the raw logits: a copy only where both edits and log-probabilities are wanted."""
        wanted = [
            (edit, rows)
            for edit in self._edits
            if (rows := [row for row, sequence in enumerate(sequences) if edit.concerns(sequence.sampling)])
        ]
        described = any(sequence.sampling.logprobs is not None for sequence in sequences)
        raw = logits.clone() if wanted and described else logits
        for edit, rows in wanted:
            edit.apply(logits, rows, [sequences[row] for row in rows])
        return raw


def _error(peak: float) -> str | None:
    """What is wrong with a row whose largest logit this is: a NaN anywhere makes the maximum NaN."""
    if peak == float("-inf"):
        return ALL_MASKED
    if peak - peak != 0.0:
        return NOT_FINITE
    return None


def _blocks(drawn: list[int], sequences: list[Sequence]) -> Iterator[list[int]]:
    """Rows to draw for together: at most `ROWS_AT_ONCE`, either all cut down by min_p, top_k or top_p, or none."""
    for truncated in (False, True):
        rows = [row for row in drawn if truncates(sequences[row].sampling) == truncated]
        for start in range(0, len(rows), ROWS_AT_ONCE):
            yield rows[start : start + ROWS_AT_ONCE]


def _pick(tensor: Tensor, rows: list[int]) -> Tensor:
    """`tensor[rows]` for ascending, distinct rows; a view, not a copy, if they are consecutive."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return tensor[rows[0] : rows[-1] + 1]
    return tensor[torch.tensor(rows, device=tensor.device)]


def _draw(logits: Tensor, peak: Tensor, sequences: list[Sequence]) -> Tensor:
    """The token id drawn for each row of a block, int64 [rows]; `logits` [rows, vocabulary] are left as they are."""
    numbers = [draw.uniform(sequence.sampling.seed, len(sequence.tokens)) for sequence in sequences]
    uniforms = torch.tensor(numbers, dtype=torch.float64).to(logits.device)
    limits = Limits.of([sequence.sampling for sequence in sequences], logits.shape[1], logits.device)
    if not truncates(sequences[0].sampling):
        return draw.invert(scaled(logits, peak, limits.temperature).exp_(), uniforms)
    ids = torch.empty(len(sequences), dtype=torch.int64, device=logits.device)
    for rows, found in candidates(logits, peak, limits):
        columns = draw.invert(found.weights, uniforms[rows])
        ids[rows] = found.ids.gather(1, columns.unsqueeze(1)).squeeze(1)
    return ids


def _describe(
    raw: Tensor, tokens: list[int], errors: list[str | None], sequences: list[Sequence]
) -> dict[int, TokenLogprobs]:
    """Entries of the healthy rows that want log-probabilities, by row. Rows of one width share the work."""
    by_width: dict[int, list[int]] = {}
    for row, (error, sequence) in enumerate(zip(errors, sequences, strict=True)):
        if error is None and sequence.sampling.logprobs is not None:
            by_width.setdefault(sequence.sampling.logprobs, []).append(row)
    described: dict[int, TokenLogprobs] = {}
    for width, rows in by_width.items():
        entries = logprobs.describe(_pick(raw, rows), [tokens[row] for row in rows], width)
        described.update(zip(rows, entries, strict=True))
    return described
