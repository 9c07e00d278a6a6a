"""What one forward pass on a GPU computes, as the Triton kernels read it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from engine.batch import SequenceInput


@dataclass(frozen=True, slots=True)
class GpuBatch:
    """A step's rows. Sequences with a single row lie first: they are attended to by another kernel than chunks, whatever
    else is in the step, so that a row's result does not depend on its company. Built on the host, sent in one copy.

    Attributes:
        singles: sequences (and rows) that are a single token.
        token_ids: int64 [rows].
        positions: int64 [rows], position of each row in its sequence.
        slots: int64 [rows], block * block_size + offset: where its key and value go.
        row_starts: int32 [sequences - singles + 1], first row of each chunk, counted from the first chunk's.
        kv_lengths: int32 [sequences], keys of each, this step's included.
        block_tables: int32 [sequences, most blocks].
        results: int64 [results], rows whose hidden state is wanted, in the order of the sequences as they were given.
        newest: int64 [2, n]: rows, and where in the table of newest tokens their ids stand (see `fill`).
        longest: most rows of one sequence.
        longest_single: most keys of a single row's sequence.
    """

    singles: int
    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    row_starts: Tensor
    kv_lengths: Tensor
    block_tables: Tensor
    results: Tensor
    newest: Tensor
    longest: int
    longest_single: int

    @classmethod
    def build(cls, sequences: Sequence[SequenceInput], block_size: int, device: torch.device) -> "GpuBatch":
        """Lay out the chunks of `sequences` (at least one)."""
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index].token_ids) > 1)
        laid = [sequences[index] for index in order]
        singles = sum(len(item.token_ids) == 1 for item in laid)
        ends = list(accumulate(len(item.token_ids) for item in laid))
        end_of = dict(zip(order, ends, strict=True))
        spans = [range(item.start, item.start + len(item.token_ids)) for item in laid]
        tables = [item.block_table[: -(-span.stop // block_size)] for item, span in zip(laid, spans, strict=True)]
        most = max(map(len, tables))
        parts = _send(
            [
                [token for item in laid for token in item.token_ids],
                [position for span in spans for position in span],
                [
                    table[position // block_size] * block_size + position % block_size
                    for table, span in zip(tables, spans, strict=True)
                    for position in span
                ],
                [0, *(end - singles for end in ends[singles:])],
                [span.stop for span in spans],
                [block for table in tables for block in table + [0] * (most - len(table))],
                [
                    row
                    for index, item in enumerate(sequences)
                    for row in range(end_of[index] - item.results, end_of[index])
                ],
                [
                    *(end - 1 for end, item in zip(ends, laid, strict=True) if item.newest is not None),
                    *(item.newest for item in laid if item.newest is not None),
                ],
            ],
            device,
        )
        return cls(
            singles=singles,
            token_ids=parts[0],
            positions=parts[1],
            slots=parts[2],
            row_starts=parts[3].int(),
            kv_lengths=parts[4].int(),
            block_tables=parts[5].int().view(len(laid), most),
            results=parts[6],
            newest=parts[7].view(2, -1),
            longest=max(map(len, spans)),
            longest_single=max((span.stop for span in spans[:singles]), default=0),
        )

    def fill(self, newest: Tensor) -> None:
        """Take ids that the host may not know yet from the table of newest tokens, int64 [entries], on the device."""
        if self.newest.numel():
            self.token_ids[self.newest[0]] = newest[self.newest[1]]


def _send(lists: list[list[int]], device: torch.device) -> list[Tensor]:
    """All lists to the device in one copy, from pinned memory where the device is not this one; int64, as views."""
    host = torch.tensor([value for values in lists for value in values])
    if device.type != "cpu":
        host = host.pin_memory()
    return list(torch.split(host.to(device, non_blocking=True), [len(values) for values in lists]))
