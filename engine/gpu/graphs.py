"""Decode steps as CUDA graphs: one launch for a step of one token per sequence, over buffers that stay where they are.

The host writes a step's inputs into one piece of pinned memory, one copy brings them into the buffers, and the graph of the
smallest recorded number of rows runs over them, however long their sequences are. Rows beyond the step's are padding: their slot is
-1, so that they write nowhere, and they have no keys. A graph holds the forward pass up to the final norm; logits and sampling,
whose shapes depend on what requests ask for, follow it as single launches.

Recording and replaying are behind `Recorder`: on CPU tensors the work runs eagerly over the same buffers, as tests do.
"""

import gc
import logging
import time
from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engine.gpu.batch import GpuBatch
from engine.gpu.graph_policy import MOST_FAILURES, GraphPlan
from engine.gpu.model import GpuModel
from engine.sequence_input import SequenceInput
from scheduler.types.step import GraphCounts

log = logging.getLogger("headrace.engine")

Work = Callable[[], None]


class NotRecorded(RuntimeError):
    """The work was done once, and recording it failed."""


class Recorder(Protocol):
    """Turns work on a device into something that does it again cheaply."""

    def record(self, prepare: Work, work: Work) -> Work:
        """Run `work` once; returns what runs it again over the same memory. `prepare` makes that first run harmless.

        Raises:
            NotRecorded: the work was done, but cannot be repeated this way.
            RuntimeError: the work itself failed.
        """
        ...


class EagerRecorder:
    """Without graphs: the work itself is run again."""

    def record(self, prepare: Work, work: Work) -> Work:
        """Run the work once, as a GPU does, and return it."""
        prepare()
        work()
        return work


class CudaRecorder:
    """CUDA graphs, recorded on a stream of their own. They share one pool of memory, since they run one after the other.

    Graphs stay until the process ends: torch clears a stream's workspaces when a graph that was recorded there is freed, and the
    other graphs still use them.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def record(self, prepare: Work, work: Work) -> Work:
        """Run the work, which compiles kernels and lets libraries set themselves up, then record it."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        self._graphs.append(graph)
        try:
            with torch.cuda.stream(self._stream):
                prepare()
                work()
                self._capture(graph, work)
        finally:  # the next step fills the buffers that this work reads
            current.wait_stream(self._stream)
        replay: Work = graph.replay
        return replay

    def _capture(self, graph: torch.cuda.CUDAGraph, work: Work) -> None:
        """Record without `torch.cuda.graph`, which would wait for the device and collect garbage in the middle of serving."""
        collecting = gc.isenabled()
        gc.disable()  # if the collector freed a tensor while the stream is recorded, that would be recorded, too
        try:
            graph.capture_begin(self._pool, "thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        except RuntimeError as error:
            raise NotRecorded(str(error)) from error
        finally:
            if collecting:
                gc.enable()


class _Layout:
    """Where the inputs of a step are in a piece of memory: int64 rows first, then int32 ones, last the block tables, so that a step
    takes no more of it than its tables need.

    Args:
        rows: of the graph.
        blocks: in the block tables of all rows together.
    """

    def __init__(self, rows: int, blocks: int) -> None:
        self.rows = rows
        self._wide = 4 * 8 * rows
        self.nbytes = self._wide + 4 * (2 * rows + blocks)

    def split(self, memory: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views of uint8 `memory`: int64 [4, rows] (ids, positions, slots, entries of the table of newest tokens), int32 [rows]
        key counts, int32 [rows] where each block table begins, int32 [blocks] block tables."""
        narrow = memory[self._wide : self.nbytes].view(torch.int32)
        return (
            memory[: self._wide].view(torch.int64).view(4, self.rows),
            narrow[: self.rows],
            narrow[self.rows : 2 * self.rows],
            narrow[2 * self.rows :],
        )


class DecodeGraphs:
    """Runs decode steps on graphs where there are some, and records them.

    Args:
        model: computes the steps.
        plan: chooses shapes.
        recorder: for the device that the model is on.
        dtype: of the model's hidden states.
    """

    def __init__(self, model: GpuModel, plan: GraphPlan, recorder: Recorder, dtype: torch.dtype) -> None:
        self._model = model
        self._plan = plan
        self._recorder = recorder
        self._device = device = model.device
        self._block_size = model.pool.block_size
        self._width = -(-model.context // self._block_size)
        self._memory = torch.zeros(self._room(plan.largest).nbytes, dtype=torch.uint8, device=device)
        self._hidden = torch.empty(plan.largest, model.config.hidden_size, dtype=dtype, device=device)
        self._every = torch.arange(plan.largest, device=device)
        self._replays: dict[int, Work] = {}  # by rows
        self.replayed = 0  # steps that ran on a graph

    def forward(self, inputs: Sequence[SequenceInput], newest: Tensor) -> Tensor:
        """A step's hidden states: [results, hidden] in the model's type, valid until the next call.

        Args:
            inputs: the step's chunks.
            newest: int64 [entries], table of newest tokens.
        """
        if any(len(item.token_ids) != 1 or item.results != 1 or item.adapter for item in inputs):
            return self._eagerly(inputs, newest)
        rows = len(inputs)
        bucket = self._plan.recorded(rows)
        if bucket is None:
            began = time.perf_counter()
            hidden = self._eagerly(inputs, newest)
            self._plan.ran_eagerly(rows, time.perf_counter() - began)
            return hidden
        if self._model.would_cascade(inputs):  # no graph has its shapes
            return self._eagerly(inputs, newest)
        self._plan.ran_on(bucket, rows)
        self._fill(bucket, inputs, newest)
        self._replays[bucket]()
        self.replayed += 1
        return self._hidden[:rows]

    @property
    def counts(self) -> GraphCounts:
        """What became of recordings, and of steps that had one."""
        return GraphCounts(steps=self.replayed, recorded=len(self._replays), failed=self._plan.failures)

    @property
    def row_counts(self) -> list[int]:
        """Numbers of rows that graphs may have, ascending."""
        return self._plan.row_counts

    @property
    def first(self) -> list[int]:
        """What to record before the first request, in this order."""
        return self._plan.first

    def missed(self) -> int | None:
        """The number of rows whose steps have cost most without a graph, if that is worth one."""
        return self._plan.next()

    def record(self, rows: int) -> None:
        """Record the graph of this many rows; to be called by all ranks, while the device is busy with a step.

        Memory is planned for all graphs, so none should fail. One that did is tried again, as the plan says: what made it fail may
        have been another process's. (A capture that broke off may leave torch's allocator in the middle of it: then a later step
        fails, and the engine is started anew.)

        Raises:
            RuntimeError: with several ranks, the work itself failed: the others are waiting in it.
        """
        began = time.perf_counter()
        replay: Work | None = None
        try:
            replay = self._recorder.record(lambda: self._fill(rows, (), None), self._work(rows))
        except RuntimeError as error:  # a device that has failed says so again in the next step
            if self._model.group.size > 1 and not isinstance(error, NotRecorded):
                raise
            log.warning("no CUDA graph for %d rows: %s", rows, error)
        made = replay is not None
        # A graph's sums over ranks include padding, so all ranks have it or none does.
        if not self._model.group.least(made) or replay is None:
            self._plan.failed(rows, time.perf_counter() - began)
            if self._plan.failures == MOST_FAILURES:
                log.error("%d CUDA graphs could not be recorded: steps of other shapes will run without", MOST_FAILURES)
            return
        self._replays[rows] = replay
        seconds = time.perf_counter() - began
        self._plan.was_recorded(rows, seconds)
        log.debug("CUDA graph for %d rows recorded in %.3f s", rows, seconds)

    def _eagerly(self, inputs: Sequence[SequenceInput], newest: Tensor) -> Tensor:
        batch = self._model.lay_out(inputs)
        batch.fill(newest)
        return self._model.compute(batch)

    def _room(self, rows: int) -> _Layout:
        """The inputs of rows that are as long as can be."""
        return _Layout(rows, rows * self._width)

    def _work(self, rows: int) -> Work:
        """The forward pass over the buffers."""
        wide, lengths, starts, tables = self._room(rows).split(self._memory)
        batch = GpuBatch(
            singles=rows,
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
        hidden = self._hidden[:rows]

        @torch.inference_mode()
        def work() -> None:
            self._model.compute(batch, hidden)

        return work

    def _fill(self, rows: int, inputs: Sequence[SequenceInput], newest: Tensor | None) -> None:
        """Bring the inputs of a step into the buffers; all rows beyond them are padding."""
        size, used = self._block_size, [item.block_table[: item.start // self._block_size + 1] for item in inputs]
        ends = list(accumulate(map(len, used), initial=0))
        layout = _Layout(rows, ends[-1])
        pinned = self._device.type == "cuda"
        host = torch.zeros(layout.nbytes, dtype=torch.uint8, pin_memory=pinned)
        wide, lengths, starts, tables = (part.numpy() for part in layout.split(host))
        wide[2:, len(inputs) :] = -1
        for row, (item, table) in enumerate(zip(inputs, used, strict=True)):
            slot = table[-1] * size + item.start % size
            wide[:, row] = item.token_ids[0], item.start, slot, -1 if item.newest is None else item.newest
        lengths[: len(inputs)] = wide[1, : len(inputs)] + 1
        starts[: len(inputs)] = ends[:-1]
        tables[:] = np.fromiter(chain.from_iterable(used), dtype=np.int32, count=ends[-1])
        self._memory[: layout.nbytes].copy_(host, non_blocking=True)
        if newest is not None:
            ids, places = (layout.split(self._memory)[0][index] for index in (0, 3))
            ids.copy_(torch.where(places < 0, ids, newest[places.clamp(min=0)]))
