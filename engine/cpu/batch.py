"""What one forward pass computes: the chunks of a step laid end to end, and all that the layers share about them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from engine.cpu.kv_pool import KvPool
from kernels.cpu.ops.paged_attention import Tile, plan_tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceInput:
    """One sequence's chunk. KV of the positions before it is there already.

    Attributes:
        token_ids: ids of tokens `[start, start + len(token_ids))`, at least one.
        start: position of the first.
        block_table: block i holds positions `[i * block_size, (i + 1) * block_size)`, up to the chunk's last token.
        wanted: how many of the last tokens have a result that is wanted: one to sample, all to score a prompt, none in the middle
            of one; None: all.
        newest: the last id is taken from this entry of the device's table of newest tokens, since the host may not know it yet;
            None: it is in `token_ids`.
        adapter: index of the LoRA adapter; 0: none.
    """

    token_ids: list[int]
    start: int
    block_table: list[int]
    wanted: int | None = None
    newest: int | None = None
    adapter: int = 0

    @property
    def results(self) -> int:
        """How many rows of the result are this chunk's."""
        return len(self.token_ids) if self.wanted is None else self.wanted


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


def adapter_rows(names: Iterable[str]) -> dict[str, int]:
    """The index of each LoRA adapter by its name, for `SequenceInput.adapter`; the empty name, no adapter, has 0."""
    return {name: index for index, name in enumerate(["", *names])}


def adapters_of(sequences: Sequence[SequenceInput]) -> list[int]:
    """The index of each row's adapter; empty if no row has one."""
    if not any(item.adapter for item in sequences):
        return []
    return [item.adapter for item in sequences for _ in item.token_ids]


def slots_of(block_table: list[int], block_size: int, positions: range) -> list[int]:
    """Where keys and values of these positions go: block * block_size + offset."""
    return [block_table[position // block_size] * block_size + position % block_size for position in positions]
