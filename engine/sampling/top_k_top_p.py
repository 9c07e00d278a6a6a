"""min_p, top_k and top_p: which tokens may be drawn.

Order and definitions, as in vLLM: temperature first; then min_p on the scaled distribution (Nguyen et al. 2024,
"Turning up the heat", section 3: keep p >= min_p * p_max); then top_k (keep the k likeliest); then top_p on what is
left, renormalized (Holtzman et al. 2020, section 3.1: the fewest likeliest tokens whose mass reaches top_p; at least
one). Equal logits are ranked by token id, lower first, so that exactly k tokens stay and the choice depends on
nothing else.

In that ranking each of the three keeps a prefix, so a row needs only the top of its ranking: take the largest n logits,
check that the prefix ends inside them for certain, otherwise take more. The full sort is the last rung, reached where a
nucleus spans a third of the vocabulary (high temperatures).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scheduler.types.sampling_params import SamplingParams

FIRST_RUNG = 256  # a torch.topk of 256 costs about what one of 50 does
RUNG_FACTOR = 8


class Candidates(NamedTuple):
    """What may be drawn: weights fp32 (zero: not a candidate; the likeliest has one) and ids int64, both [rows, n].

    Ids ascend within a row, as `draw.invert` asks for.
    """

    weights: Tensor
    ids: Tensor


@dataclass(frozen=True, slots=True)
class Limits:
    """The three settings of some rows as tensors [rows]; "off" is what keeps everything."""

    temperature: Tensor  # fp32
    log_min_p: Tensor  # fp32; -inf = off
    top_k: Tensor  # int64; the size of the vocabulary = off
    top_p: Tensor  # fp64; inf = off

    @classmethod
    def of(cls, settings: list[SamplingParams], vocab_size: int, device: torch.device) -> "Limits":
        """Collect the limits of `settings`, one for each row."""
        temperature = torch.tensor([s.temperature for s in settings], dtype=torch.float32)
        tiny = torch.finfo(torch.float32).tiny  # below, a temperature would round to zero and divide 0 by 0
        top_k = [min(s.top_k, vocab_size) if s.top_k > 0 else vocab_size for s in settings]
        top_p = [s.top_p if s.top_p < 1.0 else float("inf") for s in settings]
        return cls(
            temperature.clamp_(min=tiny).to(device),
            torch.tensor([s.min_p for s in settings], dtype=torch.float32).log_().to(device),
            torch.tensor(top_k, dtype=torch.int64).to(device),
            torch.tensor(top_p, dtype=torch.float64).to(device),
        )

    def __getitem__(self, rows: Tensor) -> "Limits":
        return Limits(self.temperature[rows], self.log_min_p[rows], self.top_k[rows], self.top_p[rows])


def truncates(settings: SamplingParams) -> bool:
    """Whether any of the three is on."""
    return settings.top_k > 0 or settings.top_p < 1.0 or settings.min_p > 0.0


def scaled(logits: Tensor, peak: Tensor, temperature: Tensor) -> Tensor:
    """(logits - peak) / temperature, [rows, n]: log-weights, zero for the likeliest token; new memory.

    `peak` [rows] is each row's largest logit. Subtracting first keeps every quotient at or below zero, whatever the
    temperature: no overflow, no NaN from finite input.
    """
    return (logits - peak.unsqueeze(1)).div_(temperature.unsqueeze(1))


def rungs(vocab_size: int, first: int = FIRST_RUNG) -> list[int]:
    """How many of the likeliest tokens to look at in each try; the last is all of them."""
    sizes = []
    while first * 2 <= vocab_size:  # a rung of more than half the vocabulary would hardly be cheaper than all of it
        sizes.append(first)
        first *= RUNG_FACTOR
    return [*sizes, vocab_size]


def take(tensor: Tensor, rows: Tensor) -> Tensor:
    """`tensor[rows]` for ascending, distinct `rows`; the tensor itself, uncopied, where that is every row."""
    return tensor if len(rows) == len(tensor) else tensor[rows]


def candidates(
    logits: Tensor, peak: Tensor, limits: Limits, first_rung: int = FIRST_RUNG
) -> list[tuple[Tensor, Candidates]]:
    """What each row may draw from, as groups of (ascending row numbers int64, their candidates); each row is in one.

    `logits` [rows, vocabulary] fp32 with a finite largest value `peak` [rows]; -inf marks masked tokens.
    """
    vocab_size = logits.shape[1]
    totals = _totals(logits, peak, limits)
    # top_k needs to see one token more than k: only a smaller neighbour proves that no equal one was left out.
    need = torch.where(limits.top_k < vocab_size, limits.top_k + 1, 1)
    waiting = torch.arange(len(logits), device=logits.device)
    groups = []
    for size in rungs(vocab_size, first_rung):
        ready = need[waiting] <= size
        rows = waiting[ready]
        if not len(rows):
            continue
        ranking = _Ranking.of(take(logits, rows), size)
        settled, found = _keep(ranking, peak[rows], limits[rows], totals[rows])
        groups.append((rows[settled], Candidates(found.weights[settled], found.ids[settled])))
        waiting = torch.cat([waiting[~ready], rows[~settled]]).sort().values
        if not len(waiting):
            break
    return groups


class _Ranking(NamedTuple):
    """The largest logits of each row, largest first: values fp32 and ids int64 [rows, n].

    The first `known` [rows] of them are certain; where others equal the last value, some of those may be outside.
    """

    values: Tensor
    ids: Tensor
    known: Tensor

    @classmethod
    def of(cls, logits: Tensor, size: int) -> "_Ranking":
        """Rank the `size` largest of each row of `logits` [rows, vocabulary]; the order of equal ones is open."""
        if size == logits.shape[1]:
            values, ids = logits.sort(dim=-1, descending=True)  # half the time of a topk of everything
            return cls(values, ids, torch.full_like(ids[:, 0], size))
        values, ids = logits.topk(size, dim=-1)
        last = values[:, -1:]
        known = torch.where(last.squeeze(1).isneginf(), size, (values > last).sum(dim=-1))  # masked: none follows
        return cls(values, ids, known)

    def best_ids(self, kept: Tensor) -> Tensor:
        """Ids reordered so that the first `kept[row]` of each row are the best: equal logits at that border go by ascending id."""
        border = torch.stack([kept - 1, kept.clamp(max=self.values.shape[1] - 1)], dim=1)
        inside, outside = self.values.gather(1, border).unbind(1)
        if not bool(((inside == outside) & (kept < self.values.shape[1])).any()):
            return self.ids
        ids, by_id = self.ids.sort(dim=-1)
        by_value = self.values.gather(1, by_id).sort(dim=-1, descending=True, stable=True).indices
        return ids.gather(1, by_value)


def _totals(logits: Tensor, peak: Tensor, limits: Limits) -> Tensor:
    """Mass of the whole row, fp64 [rows], where only top_p is on; elsewhere NaN: top_p is then of the mass that is left."""
    alone = (limits.top_k == logits.shape[1]) & limits.log_min_p.isneginf()
    totals = torch.full_like(peak, float("nan"), dtype=torch.float64)
    rows = alone.nonzero().squeeze(1)
    if len(rows):
        weights = scaled(take(logits, rows), peak[rows], limits.temperature[rows]).exp_()
        totals[rows] = weights.sum(dim=-1, dtype=torch.float64)
    return totals


def _keep(ranking: _Ranking, peak: Tensor, limits: Limits, totals: Tensor) -> tuple[Tensor, Candidates]:
    """(which rows are certain, bool [rows]; the candidates of all rows, meaningful for the certain ones)."""
    logs = scaled(ranking.values, peak, limits.temperature)
    allowed = torch.minimum(limits.top_k, (logs >= limits.log_min_p.unsqueeze(1)).sum(dim=-1))
    weights = logs.exp_()
    sums = weights.cumsum(dim=-1, dtype=torch.float64)
    alone = ~totals.isnan()
    seen = sums.gather(1, (allowed.clamp(max=sums.shape[1]) - 1).unsqueeze(1)).squeeze(1)
    target = limits.top_p * torch.where(alone, totals, seen)
    before = sums - weights  # mass of what ranks higher
    nucleus = (before < target.unsqueeze(1)).sum(dim=-1)
    kept = torch.minimum(allowed, nucleus).clamp_(min=1)
    settled = (kept <= ranking.known) & (alone | (allowed <= ranking.known))
    width = int(kept.max())
    rank = torch.arange(width, device=weights.device)
    weights = weights[:, :width].masked_fill_(rank >= kept.unsqueeze(1), 0.0)
    ids, order = ranking.best_ids(kept)[:, :width].sort(dim=-1)
    return settled, Candidates(weights.gather(1, order), ids)
