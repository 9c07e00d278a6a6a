"""What one forward pass on a GPU computes, as the Triton kernels read it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from configs.model.config import ModelConfig
from engine.sequence_input import SequenceInput, adapters_of, slots_of
from kernels.gpu.attention.cascade_groups import CascadeBatch, Group, find_groups
from kernels.gpu.attention.chunk_work import ChunkWork
from kernels.gpu.runtime import sent


@dataclass(frozen=True, slots=True)
class Sharing:
    """When it pays to attend to single tokens of sequences that share leading blocks as a group.

    Attributes:
        heads: query heads of this rank.
        kv_heads: KV heads of this rank.
        block_bytes: bytes of one block in one layer.
        least_saved: bytes per layer that the groups of a step must save together (`kernels.gpu.attention.cascade_groups`).
    """

    heads: int
    kv_heads: int
    block_bytes: int
    least_saved: int

    @classmethod
    def of(cls, config: ModelConfig, block_bytes: int, least_saved: int) -> "Sharing":
        """For blocks of `block_bytes` in all layers of one rank's `config`."""
        return cls(config.heads, config.kv_heads, block_bytes // config.layers, least_saved)


@dataclass(frozen=True, slots=True)
class GpuBatch:
    """A step's rows. Sequences with a single row come first: another kernel than that of chunks attends to them, whatever else is
    in the step, so that a row's result does not depend on the other rows (`cascade` is the exception, and has to be asked for).
    Built on the host, sent in one copy; in two with groups.

    Attributes:
        singles: sequences (and rows) that are a single token.
        token_ids: int64 [rows].
        positions: int64 [rows], position of each row in its sequence.
        slots: int64 [rows], block * block_size + offset: where its key and value go.
        row_starts: int32 [chunks + 1], first row of each chunk, counted from `origin`.
        kv_lengths: int32 [sequences], keys of each, this step's included.
        tables: int32 [blocks of all single rows' sequences], one block table after the other.
        table_starts: int32 [singles], where each begins in `tables`.
        block_tables: int32 [chunks, blocks of the longest]; zeros fill shorter ones up.
        results: int64 [results], rows whose hidden state is wanted, in the order of the sequences as they were given.
        newest: int64 [2, n]: rows, and the entries of the table of newest tokens that hold their ids (for `fill`).
        longest: most rows of one sequence.
        longest_single: most keys of a single row's sequence.
        chunks: rows and keys of each chunk, for the host.
        origin: the first chunk's row; 0 on a graph, where it changes from step to step.
        work: the pieces of the chunks; None: they are made of `chunks`.
        adapters: int64 [rows], index of each row's LoRA adapter, 0: none; None where no row has one.
        cascade: the single tokens by the prefixes they share; None where each reads its own keys.
    """

    singles: int
    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    row_starts: Tensor
    kv_lengths: Tensor
    tables: Tensor
    table_starts: Tensor
    block_tables: Tensor
    results: Tensor
    newest: Tensor
    longest: int
    longest_single: int
    origin: int = 0
    work: ChunkWork | None = None
    chunks: Sequence[tuple[int, int]] = ()
    cascade: CascadeBatch | None = None
    adapters: Tensor | None = None

    @classmethod
    def build(
        cls,
        sequences: Sequence[SequenceInput],
        block_size: int,
        device: torch.device,
        sharing: Sharing | None = None,
    ) -> "GpuBatch":
        """Lay out the chunks of `sequences` (at least one).

        Args:
            sequences: in any order.
            block_size: of the pool.
            device: where it computes.
            sharing: look for groups that pay; None: do not, and a row's result never depends on the other rows.
        """
        order = _order(sequences, sharing is not None)
        laid = [sequences[index] for index in order]
        singles = sum(len(item.token_ids) == 1 for item in laid)
        ends = list(accumulate(len(item.token_ids) for item in laid))
        end_of = dict(zip(order, ends, strict=True))
        spans = [range(item.start, item.start + len(item.token_ids)) for item in laid]
        tables = [item.block_table[: -(-span.stop // block_size)] for item, span in zip(laid, spans, strict=True)]
        own, padded, most = tables[:singles], tables[singles:], max(map(len, tables[singles:]), default=0)
        wide, narrow = _send(
            [
                [token for item in laid for token in item.token_ids],
                [position for span in spans for position in span],
                [slot for table, span in zip(tables, spans, strict=True) for slot in slots_of(table, block_size, span)],
                [end_of[index] - back for index, item in enumerate(sequences) for back in range(item.results, 0, -1)],
                _newest(laid, ends),
                adapters_of(laid),
            ],
            [
                [0, *(end - singles for end in ends[singles:])],
                [span.stop for span in spans],
                [block for table in own for block in table],
                list(accumulate(map(len, own), initial=0))[:singles],
                [block for table in padded for block in table + [0] * (most - len(table))],
            ],
            device,
        )
        return cls(
            singles=singles,
            origin=singles,
            token_ids=wide[0],
            positions=wide[1],
            slots=wide[2],
            row_starts=narrow[0],
            kv_lengths=narrow[1],
            tables=narrow[2],
            table_starts=narrow[3],
            block_tables=narrow[4].view(len(padded), most),
            results=wide[3],
            newest=wide[4].view(2, -1),
            adapters=wide[5] if len(wide[5]) else None,
            chunks=[(len(span), span.stop) for span in spans[singles:]],
            longest=max(map(len, spans)),
            longest_single=max((span.stop for span in spans[:singles]), default=0),
            cascade=_cascade(tables[:singles], spans[:singles], block_size, sharing, device),
        )

    @classmethod
    def of_padding(cls, singles: int, chunk: int, keys: int, block_size: int, device: torch.device) -> "GpuBatch":
        """Rows that write nowhere: `singles` single tokens without keys, laid out as if they had up to `keys`, and one chunk of
        `chunk` rows (none if 0) on as many keys, or its own if those are more, all of them what block 0 holds."""
        rows, sequences = singles + chunk, singles + (chunk > 0)
        seen = max(chunk, keys) if chunk else 0
        whole = partial(torch.zeros, dtype=torch.int32, device=device)
        lengths = whole(sequences)
        lengths[singles:] = seen
        return cls(
            singles=singles,
            origin=singles,
            token_ids=torch.zeros(rows, dtype=torch.int64, device=device),
            positions=torch.zeros(rows, dtype=torch.int64, device=device),
            slots=torch.full((rows,), -1, device=device),
            row_starts=torch.arange(2 if chunk else 1, dtype=torch.int32, device=device) * chunk,
            kv_lengths=lengths,
            tables=whole(1),
            table_starts=whole(singles),
            block_tables=whole(sequences - singles, -(-seen // block_size)),
            results=torch.arange(rows, device=device),
            newest=torch.zeros((2, 0), dtype=torch.int64, device=device),
            chunks=[(chunk, seen)] if chunk else [],
            longest=max(chunk, 1),
            longest_single=keys,
        )

    @classmethod
    def of_one_group(cls, keys: int, block_size: int, sharing: Sharing, device: torch.device) -> "GpuBatch":
        """Two single tokens that write nowhere and share the first of the blocks for `keys` keys: all of them block 0."""
        tables, lengths = [[0] * -(-keys // block_size)] * 2, [keys] * 2
        cascade = CascadeBatch.build(
            [Group(0, 2, min(1, (keys - 1) // block_size))],
            tables,
            lengths,
            block_size=block_size,
            heads=sharing.heads,
            kv_heads=sharing.kv_heads,
            device=device,
        )
        return replace(cls.of_padding(2, 0, keys, block_size, device), cascade=cascade)

    def fill(self, newest: Tensor) -> None:
        """Fill in ids that the host may not know yet, from the table of newest tokens, int64 [entries], on the device."""
        if self.newest.numel():
            self.token_ids[self.newest[0]] = newest[self.newest[1]]


def would_cascade(sequences: Sequence[SequenceInput], block_size: int, sharing: Sharing) -> bool:
    """Whether the single tokens of a batch would have groups."""
    laid = [sequences[index] for index in _order(sequences, True) if len(sequences[index].token_ids) == 1]
    tables, lengths = [item.block_table for item in laid], [item.start + 1 for item in laid]
    return bool(find_groups(tables, lengths, block_size, sharing.block_bytes, sharing.least_saved))


def _order(sequences: Sequence[SequenceInput], sharing: bool) -> list[int]:
    """Single tokens first; where groups are looked for, those whose tables begin alike are neighbours."""

    def key(index: int) -> tuple[bool, list[int]]:
        item = sequences[index]
        chunk = len(item.token_ids) > 1
        return chunk, item.block_table if sharing and not chunk else []

    return sorted(range(len(sequences)), key=key)


def _newest(laid: Sequence[SequenceInput], ends: Sequence[int]) -> list[int]:
    """Rows whose ids are on the device, then where they are."""
    places = {end - 1: item.newest for end, item in zip(ends, laid, strict=True) if item.newest is not None}
    return [*places, *places.values()]


def _cascade(
    tables: list[list[int]], spans: list[range], block_size: int, sharing: Sharing | None, device: torch.device
) -> CascadeBatch | None:
    if sharing is None:
        return None
    lengths = [span.stop for span in spans]
    groups = find_groups(tables, lengths, block_size, sharing.block_bytes, sharing.least_saved)
    if not groups:
        return None
    return CascadeBatch.build(
        groups,
        tables,
        lengths,
        block_size=block_size,
        heads=sharing.heads,
        kv_heads=sharing.kv_heads,
        device=device,
    )


def _send(wide: list[list[int]], narrow: list[list[int]], device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """All lists to the device in one copy, as views: int64, and int32."""
    flat = sent(torch.tensor([value for values in (*wide, *narrow) for value in values]), device)
    border = sum(map(len, wide))
    return (
        list(torch.split(flat[:border], [len(values) for values in wide])),
        list(torch.split(flat[border:].int(), [len(values) for values in narrow])),
    )
