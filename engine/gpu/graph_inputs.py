"""Inputs of steps in buffers that stay where they are, as CUDA graphs need them: one object for each kind of step.

The host writes a step's inputs into one piece of pinned memory, and one copy brings them into the buffers. What is of fixed size
comes first and the block tables of single tokens come last, so that a step sends no more than its tables need.
"""

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.gpu.batch import GpuBatch
from engine.gpu.model import GpuModel
from engine.sequence_input import SequenceInput
from kernels.gpu.attention.chunk_work import FIELDS, ChunkWork, list_pieces, most_pieces, most_states

CHUNKS = 8  # in a step that has a graph: block tables of full length are sent for each, 16 KB at 131,072 tokens

Numbers = np.ndarray[Any, np.dtype[Any]]


class GraphInputs(Protocol):
    """The buffers of one kind of step."""

    def takes(self, inputs: Sequence[SequenceInput]) -> bool:
        """Whether these sequences are such a step, of which there is room for all but perhaps the rows."""
        ...

    def batch(self, rows: int) -> GpuBatch:
        """What a graph of so many rows computes: views of the buffers."""
        ...

    def fill(self, rows: int, inputs: Sequence[SequenceInput], newest: Tensor | None) -> None:
        """Bring a step into the buffers; all rows beyond its own are padding, without `inputs` all.

        Args:
            rows: of the graph.
            inputs: the step.
            newest: int64 [entries], table of newest tokens on the device; None: no id comes from there.
        """
        ...


class InputLayout:
    """Where the inputs of a step are in a piece of memory: int64 [wide, rows] first, then int32 parts.

    Args:
        rows: of the graph.
        wide: int64 numbers of each row: id, position, slot, entry of the table of newest tokens (-1: none), and what else there is.
        narrow: int32 numbers of each other part.
    """

    def __init__(self, rows: int, wide: int, narrow: Sequence[int]) -> None:
        self._shape = wide, rows
        self._narrow = list(narrow)
        self._border = 8 * wide * rows
        self.nbytes = self._border + 4 * sum(narrow)

    def split(self, memory: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Views of uint8 `memory`."""
        wide = memory[: self._border].view(torch.int64).view(self._shape)
        return wide, list(torch.split(memory[self._border : self.nbytes].view(torch.int32), self._narrow))

    def host(self, *, pinned: bool) -> tuple[Tensor, Numbers, list[Numbers]]:
        """Zeros for the host to fill, and views of them. New ones: the copy of the step before may not have begun."""
        memory = torch.zeros(self.nbytes, dtype=torch.uint8, pin_memory=pinned)
        wide, narrow = self.split(memory)
        return memory, wide.numpy(), [part.numpy() for part in narrow]

    def send(self, host: Tensor, memory: Tensor, newest: Tensor | None) -> None:
        """To `memory` on the device; then the ids that the host may not know come from `newest`."""
        memory[: self.nbytes].copy_(host, non_blocking=True)
        if newest is not None:
            ids, _, _, places = self.split(memory)[0][:4]
            ids.copy_(torch.where(places < 0, ids, newest[places.clamp(min=0)]))


class DecodeInputs:
    """Steps of one token per sequence, each with a result.

    Args:
        model: computes the steps.
        rows: most of a step.
    """

    def __init__(self, model: GpuModel, rows: int) -> None:
        self._model = model
        self._size = model.pool.block_size
        self._width = -(-model.context // self._size)
        self._memory = torch.zeros(_of_decode(rows, rows * self._width).nbytes, dtype=torch.uint8, device=model.device)
        self._every = torch.arange(rows, device=model.device)

    def takes(self, inputs: Sequence[SequenceInput]) -> bool:
        """One token, one result and no adapter each."""
        return all(len(item.token_ids) == 1 and item.results == 1 and not item.adapter for item in inputs)

    def batch(self, rows: int) -> GpuBatch:
        """Sequences that are as long as can be."""
        wide, (lengths, starts, tables) = _of_decode(rows, rows * self._width).split(self._memory)
        return GpuBatch(
            singles=rows,
            origin=rows,
            token_ids=wide[0],
            positions=wide[1],
            slots=wide[2],
            row_starts=lengths[:0],
            kv_lengths=lengths,
            tables=tables,
            table_starts=starts,
            block_tables=tables[:0].view(0, 0),
            results=self._every[:rows],
            newest=self._every[:0],
            longest=1,
            longest_single=self._model.context,
        )

    def fill(self, rows: int, inputs: Sequence[SequenceInput], newest: Tensor | None) -> None:
        """Rows of padding write nowhere, and have no keys: their attention is zeros."""
        layout = _of_decode(rows, _blocks(inputs, self._size))
        host, wide, (lengths, starts, tables) = layout.host(pinned=self._memory.is_cuda)
        wide[2:, len(inputs) :] = -1
        _write_singles(wide, (lengths, starts, tables), inputs, self._size)
        layout.send(host, self._memory, newest)


class ChunkInputs:
    """Steps with chunks of prompts, single tokens before them.

    Where the chunks begin, how long they are, and the pieces that attention takes them in are all in the buffers: one graph serves
    every such step of so many rows. To decode attention, which looks at as many rows as there can be single tokens, all others have
    -1 keys, which makes them none of its own. Rows of padding write nowhere; they are one chunk more, without keys, so that their
    attention is zeros.

    Args:
        model: computes the steps.
        rows: most of a step.
        singles: most single tokens of a step.
    """

    def __init__(self, model: GpuModel, rows: int, singles: int) -> None:
        self._model = model
        self._size = model.pool.block_size
        self._width = -(-model.context // self._size)
        self._singles = singles
        tiles = most_pieces(rows, CHUNKS + 1, model.context, **model.tiles)[1]
        self._arrived = torch.zeros((tiles, model.config.kv_heads), dtype=torch.int32, device=model.device)
        layout = self._layout(rows, min(rows, singles) * self._width)
        self._memory = torch.zeros(layout.nbytes, dtype=torch.uint8, device=model.device)

    def takes(self, inputs: Sequence[SequenceInput]) -> bool:
        """Up to `CHUNKS` chunks, and no adapters."""
        chunks = sum(len(item.token_ids) > 1 for item in inputs)
        fits = 0 < chunks <= CHUNKS and len(inputs) - chunks <= self._singles
        return fits and not any(item.adapter for item in inputs)

    def batch(self, rows: int) -> GpuBatch:
        """Sequences that are as long as can be, chunks that begin anywhere."""
        config, singles = self._model.config, min(rows, self._singles)
        layout = self._layout(rows, singles * self._width)
        wide, (lengths, starts, row_starts, items, block_tables, tables) = layout.split(self._memory)
        return GpuBatch(
            singles=singles,
            token_ids=wide[0],
            positions=wide[1],
            slots=wide[2],
            row_starts=row_starts[:-1],
            kv_lengths=lengths,
            tables=tables,
            table_starts=starts,
            block_tables=block_tables.view(CHUNKS + 1, self._width),
            results=wide[4],
            newest=wide[:2, :0],
            longest=rows,
            longest_single=self._model.context,
            work=ChunkWork(
                items=items.view(-1, FIELDS),
                arrived=self._arrived[: most_pieces(rows, CHUNKS + 1, self._model.context, **self._model.tiles)[1]],
                states=most_states(rows, config.heads, config.kv_heads, self._model.context),
            ),
        )

    def fill(self, rows: int, inputs: Sequence[SequenceInput], newest: Tensor | None) -> None:
        """Chunks that are not there have no rows, and pieces that are not there belong to one after the last."""
        order = sorted(range(len(inputs)), key=lambda index: _length(inputs[index]) > 1)
        laid = [inputs[index] for index in order]
        count = sum(_length(item) == 1 for item in laid)
        singles, chunks, room = laid[:count], laid[count:], min(rows, self._singles)
        layout = self._layout(rows, _blocks(singles, self._size))
        host, wide, (lengths, starts, row_starts, items, block_tables, tables) = layout.host(
            pinned=self._memory.is_cuda
        )
        wide[2:4] = -1
        lengths[:room] = -1
        _write_singles(wide, (lengths, starts, tables), singles, self._size)
        ends, whole = list(range(1, count + 1)), block_tables.reshape(CHUNKS + 1, self._width)
        for row, (item, table) in enumerate(zip(chunks, _tables(chunks, self._size), strict=True)):
            ends.append(_write_chunk(wide, ends[-1] if ends else 0, item, table, self._size))
            lengths[room + row] = item.start + _length(item)
            whole[row, : len(table)] = table
        row_starts[:] = rows
        row_starts[: len(chunks) + 1] = [count, *ends[count:]]
        ends_of = dict(zip(order, ends, strict=True))
        results = [ends_of[index] - back for index, item in enumerate(inputs) for back in range(item.results, 0, -1)]
        wide[4, : len(results)] = results
        pieces, _ = list_pieces([(_length(item), item.start + _length(item)) for item in chunks], **self._model.tiles)
        entries = items.reshape(-1, FIELDS)
        height, used = self._model.tiles["height"], ends[-1] if ends else 0
        pieces += [(len(chunks), first, 0, 0, 0, 1, 0, 0) for first in range(0, rows - used, height)]
        entries[:, 0] = CHUNKS + 1
        entries[: len(pieces)] = pieces
        layout.send(host, self._memory, newest)

    def _layout(self, rows: int, blocks: int) -> InputLayout:
        """Beside ids, positions, slots and entries, rows with results. Keys of each single token and chunk, where each single
        token's table begins, first rows of chunks (one more, so that a piece of none can look), pieces, tables of chunks, of single
        tokens."""
        singles, pieces = (
            min(rows, self._singles),
            most_pieces(rows, CHUNKS + 1, self._model.context, **self._model.tiles)[0],
        )
        narrow = (singles + CHUNKS + 1, singles, CHUNKS + 3, pieces * FIELDS, (CHUNKS + 1) * self._width, blocks)
        return InputLayout(rows, 5, narrow)


def _length(item: SequenceInput) -> int:
    return len(item.token_ids)


def _of_decode(rows: int, blocks: int) -> InputLayout:
    """Keys of each row, where its block table begins, block tables."""
    return InputLayout(rows, 4, (rows, rows, blocks))


def _blocks(inputs: Sequence[SequenceInput], size: int) -> int:
    """In all block tables, up to each sequence's last token."""
    return sum((item.start + _length(item) - 1) // size + 1 for item in inputs)


def _tables(inputs: Sequence[SequenceInput], size: int) -> list[list[int]]:
    """Of each sequence, the blocks up to its last token."""
    return [item.block_table[: (item.start + _length(item) - 1) // size + 1] for item in inputs]


def _write_singles(wide: Numbers, narrow: Sequence[Numbers], inputs: Sequence[SequenceInput], size: int) -> None:
    """Single tokens, which are the first rows: ids, positions, slots and entries, keys and block tables."""
    lengths, starts, tables = narrow
    used = _tables(inputs, size)
    wide[0, : len(inputs)] = [item.token_ids[0] for item in inputs]
    wide[1, : len(inputs)] = [item.start for item in inputs]
    wide[2, : len(inputs)] = [table[-1] * size + item.start % size for item, table in zip(inputs, used, strict=True)]
    wide[3, : len(inputs)] = [_entry(item) for item in inputs]
    lengths[: len(inputs)] = wide[1, : len(inputs)] + 1
    starts[: len(inputs)] = list(accumulate(map(len, used), initial=0))[:-1]
    tables[:] = np.fromiter(chain.from_iterable(used), dtype=np.int32, count=len(tables))


def _write_chunk(wide: Numbers, first: int, item: SequenceInput, table: Sequence[int], size: int) -> int:
    """Ids, positions, slots and entries of a chunk's rows, from row `first` on. Returns where they end."""
    end, blocks = first + _length(item), np.array(table, dtype=np.int64)
    positions = np.arange(item.start, item.start + _length(item))
    wide[0, first:end] = item.token_ids
    wide[1, first:end] = positions
    wide[2, first:end] = blocks[positions // size] * size + positions % size
    wide[3, end - 1] = _entry(item)
    return end


def _entry(item: SequenceInput) -> int:
    return -1 if item.newest is None else item.newest
