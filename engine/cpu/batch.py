"""What one forward pass computes: the chunks of a step laid end to end, and all that the layers share about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from engine.cpu.kv_pool import KvPool
from engine.sequence_input import SequenceInput, adapters_of, slots_of
from kernels.cpu.ops.paged_attention import Tile, plan_tiles


@dataclass(frozen=True, slots=True)
class Batch:
    """A step's rows. Built once per step; layers only read it.

    Attributes:
        token_ids: int64 [rows].
        positions: int64 [rows], position of each row in its sequence.
        slots: int64 [rows], where each row's keys and values go in the pool.
        full: attention plan of layers that see all keys.
        sliding: attention plan of layers with the model's sliding window.
        adapters: int64 [rows], index of each row's LoRA adapter, 0: none; None where no row has one.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    full: list[Tile]
    sliding: list[Tile]
    adapters: Tensor | None = None

    @classmethod
    def build(cls, sequences: Sequence[SequenceInput], pool: KvPool) -> "Batch":
        """Lay out the chunks of `sequences` (at least one) over the blocks of `pool`."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        full: list[Tile] = []
        sliding: list[Tile] = []
        for sequence in sequences:
            first, start, length = len(ids), sequence.start, len(sequence.token_ids)
            plan = partial(
                plan_tiles,
                first=first,
                start=start,
                length=length,
                block_table=sequence.block_table,
                block_size=pool.block_size,
            )
            if pool.needs_full:
                full += plan(window=None)
            if pool.sliding_window is not None:
                sliding += plan(window=pool.sliding_window)
            ids += sequence.token_ids
            positions += range(start, start + length)
            slots += slots_of(sequence.block_table, pool.block_size, range(start, start + length))
        adapters = adapters_of(sequences)
        return cls(
            torch.tensor(ids),
            torch.tensor(positions),
            torch.tensor(slots),
            full,
            sliding,
            torch.tensor(adapters) if adapters else None,
        )
