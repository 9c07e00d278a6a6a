"""What a step asks of a model for one sequence, on any device: a chunk of its tokens, and where their keys and values go."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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
