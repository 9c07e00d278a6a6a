"""Attention over a block-managed KV cache that reads the blocks in place.

A slot is one token's place in the pool: `block * block_size + offset`. The pool's order `[block, token, layer, k/v, head,
dim]` gives consecutive slots of one layer a constant stride, even across blocks. So a run of consecutive blocks is one strided
view `[head, tokens, dim]`, and torch's flash attention reads it without a copy. A block table is a few such runs (the
allocator hands out neighbours if it can); each run is attended to separately and the partial results are merged by their
log-sum-exp (Dao et al. 2022, arXiv 2205.14135, section 3.1; for decode: Flash-Decoding, Dao 2023).

    keys of a sequence   0 ........ start ........... start + length
                         |- spans of the pool -|- the chunk's own rows, causal -|       a chunk of several tokens
                         |- spans of the pool -------------------------|                a single token

Fragments of a scattered table would cost one call each. They are copied, at most `STAGED_TOKENS` at a time, into a tile that
stays in cache, and attended to together; long runs are never copied.

Measured (2 cores, 9/3 heads of 64, fp32; per layer): one row at context 4,000 takes 0.57 ms, against 0.45 ms for contiguous keys
(floor: 6.1 MB at 14-20 GB/s, 0.31-0.44 ms); token-minor blocks, one flash item per block, take 1.1 ms. A chunk of 512 rows at
context 4,000 runs at 135 GFLOP/s, batched matrix products over blocks at 54.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu.ops.soft_cap import soft_cap_

HIDDEN = -1e30  # added to hidden scores: finite, so that a wholly hidden row gets weight 0 rather than NaN
STAGED_TOKENS = 1024
_SHORT = 128  # a shorter run is a fragment: its own call costs more than copying it
_FEW = 2  # up to this many fragments are cheaper as calls of their own
_SPLIT = 1024  # a single row over this many keys is split, so that all cores work even with few heads
_PARTS = 4


@dataclass(frozen=True, slots=True)
class Span:
    """Keys in consecutive slots `[first, first + parts * length)`, attended to as `parts` equal parts at once."""

    first: int
    length: int
    parts: int = 1
    mask: Tensor | None = None  # fp32 [rows, length], added to the scores; only with parts == 1


@dataclass(frozen=True, slots=True)
class Fragments:
    """Keys in scattered slots (int64 [n])."""

    slots: Tensor
    mask: Tensor | None = None  # fp32 [rows, n]


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows `[first, first + rows)` of the step, all of one sequence, and the keys in the pool they attend to.

    With `own`, the rows also attend causally to their own keys and values, which need no trip through the pool.
    """

    first: int
    rows: int
    own: bool
    pieces: tuple[Span | Fragments, ...]


def plan_tiles(
    *, first: int, start: int, length: int, block_table: Sequence[int], block_size: int, window: int | None
) -> list[Tile]:
    """Plan the attention of one sequence's chunk. Done once per step, and used by all layers with the same window.

    Args:
        first: row of the chunk's first token in the step.
        start: position of that token in the sequence.
        length: tokens in the chunk.
        block_table: block ids; entry i holds positions `[i * block_size, (i + 1) * block_size)`.
        window: how many of the newest tokens are attended to, the token itself included; None for all.
    """
    if length == 1:
        oldest = max(0, start + 1 - window) if window else 0
        pieces = _pieces(block_table, block_size, oldest, start + 1)
        return [Tile(first, 1, own=False, pieces=tuple(part for piece in pieces for part in _split(piece)))]
    tiles = []
    # Rows that all see the tile's first key, so that the tile's own part is simply causal, without a window.
    height = min(length, window) if window else length
    for row in range(0, length, height):
        rows = min(height, length - row)
        pieces = _past(block_table, block_size, start + row, rows, window)
        tiles.append(Tile(first + row, rows, own=True, pieces=tuple(pieces)))
    return tiles


def paged_attention(
    queries: Tensor,
    kv: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    tiles: Sequence[Tile],
    scale: float,
    soft_cap: float | None = None,
) -> Tensor:
    """Causal attention of a step's rows, each sequence over its own keys.

    Args:
        queries: fp32 [rows, kv_heads, group, dim], last dimension contiguous.
        kv: fp32 [rows, 2, kv_heads, dim]: the rows' own keys and values (already written to the pool).
        keys: fp32 [kv_heads, slots, dim], a view of one layer of the pool.
        values: the same for values.
        tiles: covers every row once.
        scale: factor on the scores.
        soft_cap: scores s become soft_cap * tanh(s / soft_cap) before they are masked; None: no cap.

    Returns:
        fp32 [rows, kv_heads * group * dim].
    """
    pool = _Layer(keys, values, scale, soft_cap)
    out = torch.empty(queries.shape)
    for tile in tiles:
        rows = slice(tile.first, tile.first + tile.rows)
        if tile.own:
            out[rows] = _chunk(queries[rows], kv[rows], tile.pieces, pool)
        else:
            out[rows] = _single(queries[rows], tile.pieces, pool)
    return out.view(out.shape[0], -1)


def paged_attention_reference(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    start: int,
    slots: Tensor,
    window: int | None,
    scale: float,
    soft_cap: float | None = None,
) -> Tensor:
    """One sequence's attention by definition: gather, score all pairs, mask, softmax, in fp64.

    Args:
        queries: [rows, kv_heads, group, dim].
        keys: [kv_heads, slots, dim]; values: the same.
        start: position of the first row in the sequence; the others follow.
        slots: int64 [n], the slot of each position of the sequence.
        window, scale, soft_cap: as in `plan_tiles` and `paged_attention`.

    Returns:
        fp32 [rows, kv_heads * group * dim].
    """
    gathered_keys, gathered_values = keys[:, slots].double(), values[:, slots].double()
    scores = torch.einsum("rkgd,knd->rkgn", queries.double(), gathered_keys) * scale
    if soft_cap is not None:
        scores = soft_cap * (scores / soft_cap).tanh()
    positions = torch.arange(start, start + len(queries))
    distance = positions[:, None] - torch.arange(len(slots))
    hidden = (distance < 0) | (distance >= (window or len(slots) + 1))
    weights = scores.masked_fill(hidden[:, None, None], float("-inf")).softmax(dim=-1)
    return torch.einsum("rkgn,knd->rkgd", weights, gathered_values).float().flatten(1)


# --- planning --------------------------------------------------------------------------------------------------------


def _past(
    block_table: Sequence[int], block_size: int, start: int, rows: int, window: int | None
) -> list[Span | Fragments]:
    """Keys before `start` that rows at `start ..` attend to: those that all rows see and, with a window, those that some see."""
    if window is None:
        return _pieces(block_table, block_size, 0, start)
    oldest = max(0, start + 1 - window)
    seen_by_all = min(start, max(oldest, start + rows - window))
    partly = _pieces(block_table, block_size, oldest, seen_by_all, (start, rows, window))
    return partly + _pieces(block_table, block_size, seen_by_all, start)


def _pieces(
    block_table: Sequence[int],
    block_size: int,
    begin: int,
    end: int,
    windowed: tuple[int, int, int] | None = None,
) -> list[Span | Fragments]:
    """Positions `[begin, end)` as spans and fragments; `windowed` (start, rows, window) asks for masks."""
    runs = _runs(block_table, block_size, begin, end)
    short = [run for run in runs if run[2] < _SHORT]
    if len(short) <= _FEW:
        short = []
    pieces: list[Span | Fragments] = [
        Span(slot, length, mask=_mask(torch.arange(position, position + length), windowed))
        for position, slot, length in runs
        if not short or length >= _SHORT
    ]
    if short:
        slots = torch.cat([torch.arange(slot, slot + length) for _, slot, length in short])
        positions = torch.cat([torch.arange(position, position + length) for position, _, length in short])
        pieces += [
            Fragments(part, mask=_mask(where, windowed))
            for part, where in zip(
                torch.split(slots, STAGED_TOKENS), torch.split(positions, STAGED_TOKENS), strict=True
            )
        ]
    return pieces


def _runs(block_table: Sequence[int], block_size: int, begin: int, end: int) -> list[tuple[int, int, int]]:
    """Positions `[begin, end)` as (position, first slot, length) of maximal runs of consecutive slots."""
    runs: list[tuple[int, int, int]] = []
    position = begin
    while position < end:
        index, offset = divmod(position, block_size)
        last = index
        while (last + 1) * block_size < end and block_table[last + 1] == block_table[last] + 1:
            last += 1
        length = min(end, (last + 1) * block_size) - position
        runs.append((position, block_table[index] * block_size + offset, length))
        position += length
    return runs


def _mask(positions: Tensor, windowed: tuple[int, int, int] | None) -> Tensor | None:
    """Additive mask [rows, keys] that hides keys at `positions` that have left a row's window."""
    if windowed is None:
        return None
    start, rows, window = windowed
    oldest = torch.arange(start, start + rows)[:, None] - window
    return torch.zeros(rows, len(positions)).masked_fill_(positions <= oldest, HIDDEN)


def _split(piece: Span | Fragments) -> list[Span | Fragments]:
    """Cut a long span into `_PARTS` equal parts, attended to together, and the few keys that are left over."""
    if isinstance(piece, Fragments) or piece.length < _SPLIT:
        return [piece]
    length, left = divmod(piece.length, _PARTS)
    rest = [Span(piece.first + piece.length - left, left)] if left else []
    return [Span(piece.first, length, parts=_PARTS), *rest]


# --- computing -------------------------------------------------------------------------------------------------------

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_Partial = tuple[Tensor, Tensor]  # attention over some of the keys, and the log-sum-exp of their scores


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer of the pool, and what is done to its scores."""

    keys: Tensor
    values: Tensor
    scale: float
    soft_cap: float | None

    def piece(self, piece: Span | Fragments) -> tuple[Tensor, Tensor]:
        """Keys and values of a piece, [kv_heads, n, dim]: views for a span, small copies for fragments."""
        if isinstance(piece, Fragments):
            return _gathered(self.keys, piece.slots), _gathered(self.values, piece.slots)
        stop = piece.first + piece.parts * piece.length
        return self.keys[:, piece.first : stop], self.values[:, piece.first : stop]

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> _Partial:
        """Flash attention of [batch, head, rows, dim] over [batch, head, n, dim]; any strides but the last."""
        if self.soft_cap is not None:
            return _capped(self, query, keys, values, mask=mask, causal=causal)
        result: _Partial = _flash(query, keys, values, 0.0, causal, attn_mask=mask, scale=self.scale)
        return result


def _capped(
    pool: _Layer, query: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, causal: bool
) -> _Partial:
    """`_Layer.attend` with capped scores, which torch's flash attention lacks: all scores of `STAGED_TOKENS` keys at a time."""
    assert pool.soft_cap is not None
    partials: list[_Partial] = []
    for first in range(0, keys.shape[-2], STAGED_TOKENS):
        part = slice(first, first + STAGED_TOKENS)
        scores = (query @ keys[..., part, :].transpose(-1, -2)).mul_(pool.scale)
        soft_cap_(scores, pool.soft_cap)
        if mask is not None:
            scores += mask[:, part]
        if causal:
            scores.masked_fill_(torch.ones(scores.shape[-2:], dtype=torch.bool).triu_(1 - first), HIDDEN)
        total = scores.logsumexp(dim=-1)
        partials.append((scores.sub_(total.unsqueeze(-1)).exp_() @ values[..., part, :], total))
    return _merged(partials)


def _single(query: Tensor, pieces: Sequence[Span | Fragments], pool: _Layer) -> Tensor:
    """One row, [1, kv_heads, group, dim]: the heads of a group are the rows of one product, so a key is read once."""
    partials: list[_Partial] = []
    for piece in pieces:
        keys, values = pool.piece(piece)
        if isinstance(piece, Span) and piece.parts > 1:
            partials.append(_parted(query, keys, values, piece, pool))
        else:
            partials.append(pool.attend(query, keys[None], values[None]))
    return _merge(partials)


def _parted(query: Tensor, keys: Tensor, values: Tensor, span: Span, pool: _Layer) -> _Partial:
    heads, _, dim = keys.shape
    shape = (heads, span.parts, span.length, dim)
    parts = keys.view(shape).transpose(0, 1), values.view(shape).transpose(0, 1)
    outs, totals = pool.attend(query.expand(span.parts, -1, -1, -1), *parts)
    weights = torch.softmax(totals, dim=0).unsqueeze(-1)
    return (outs * weights).sum(dim=0, keepdim=True), torch.logsumexp(totals, dim=0, keepdim=True)


def _chunk(queries: Tensor, kv: Tensor, pieces: Sequence[Span | Fragments], pool: _Layer) -> Tensor:
    """Several rows, [rows, kv_heads, group, dim]: the heads of a group share their keys through a stride of 0."""
    query = queries.permute(1, 2, 0, 3)
    group = query.shape[1]
    partials: list[_Partial] = []
    for piece in pieces:
        keys, values = pool.piece(piece)
        partials.append(pool.attend(query, _shared(keys, group), _shared(values, group), piece.mask))
    own = kv.permute(1, 2, 0, 3)  # [2, kv_heads, rows, dim]
    partials.append(pool.attend(query, _shared(own[0], group), _shared(own[1], group), causal=True))
    return _merge(partials).permute(2, 0, 1, 3)


def _gathered(side: Tensor, slots: Tensor) -> Tensor:
    # Along the first dimension: along any other, index_select first makes a contiguous copy of the whole layer.
    return side.transpose(0, 1).index_select(0, slots).transpose(0, 1)


def _shared(side: Tensor, group: int) -> Tensor:
    heads, length, dim = side.shape
    return side.unsqueeze(1).expand(heads, group, length, dim)


def _merge(partials: list[_Partial]) -> Tensor:
    """Attention over the union of disjoint sets of keys."""
    return _merged(partials)[0]


def _merged(partials: list[_Partial]) -> _Partial:
    """The union's partial: the parts' results weighted by the sums of their scores."""
    out, total = partials[0]
    for other, its_total in partials[1:]:
        out = torch.lerp(out, other, torch.sigmoid(its_total - total).unsqueeze(-1))
        total = torch.logaddexp(total, its_total)
    return out, total
