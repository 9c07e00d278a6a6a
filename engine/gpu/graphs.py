"""Steps as CUDA graphs: one launch for a whole forward pass, over buffers that stay where they are.

There are two kinds of steps that graphs serve (`engine.gpu.graph_inputs`): single tokens alone, and chunks of prompts with or
without single tokens. A step runs on the graph of the smallest recorded number of rows, whose other rows are padding, however long
its sequences are. A graph holds the forward pass up to the final norm; logits and sampling, whose shapes depend on what requests
ask for, follow it as single launches.

Recording and replaying are behind `Recorder`: on CPU tensors the work runs eagerly over the same buffers, as tests do.
"""

import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from engine.gpu.graph_inputs import ChunkInputs, DecodeInputs, GraphInputs
from engine.gpu.graph_policy import MOST_FAILURES, GraphPlan, GraphShape, StepKind
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


@dataclass(slots=True)
class _Kind:
    """One kind of steps: which graphs there are and shall be, and the buffers that they read."""

    name: StepKind
    plan: GraphPlan
    inputs: GraphInputs
    replays: dict[int, Work] = field(default_factory=dict)  # by rows

    def shape(self, rows: int) -> GraphShape:
        """The graph of this kind that has so many rows."""
        return GraphShape(self.name, rows)


class StepGraphs:
    """Runs steps on graphs where there are some, and records them.

    Args:
        model: computes the steps.
        plan: chooses shapes of steps of single tokens.
        recorder: for the device that the model is on.
        dtype: of the model's hidden states.
        chunks: chooses shapes of steps with chunks; None: those have no graphs.
    """

    def __init__(
        self,
        model: GpuModel,
        plan: GraphPlan,
        recorder: Recorder,
        dtype: torch.dtype,
        *,
        chunks: GraphPlan | None = None,
    ) -> None:
        self._model = model
        self._recorder = recorder
        self._kinds = [_Kind("decode", plan, DecodeInputs(model, plan.largest))]
        if chunks is not None:
            self._kinds.append(_Kind("chunks", chunks, ChunkInputs(model, chunks.largest, plan.largest)))
        rows = max(kind.plan.largest for kind in self._kinds)
        self._hidden = torch.empty(rows, model.config.hidden_size, dtype=dtype, device=model.device)
        self.replayed = 0  # steps that ran on a graph

    def forward(self, inputs: Sequence[SequenceInput], newest: Tensor) -> Tensor:
        """A step's hidden states: [results, hidden] in the model's type, valid until the next call.

        Args:
            inputs: the step's chunks.
            newest: int64 [entries], table of newest tokens.
        """
        rows = sum(len(item.token_ids) for item in inputs)
        kind = next((each for each in self._kinds if rows <= each.plan.largest and each.inputs.takes(inputs)), None)
        if kind is None:
            return self._eagerly(inputs, newest)
        bucket = kind.plan.recorded(rows)
        if bucket is None:
            began = time.perf_counter()
            hidden = self._eagerly(inputs, newest)
            kind.plan.ran_eagerly(rows, time.perf_counter() - began)
            return hidden
        if self._model.would_cascade(inputs):  # no graph has its shapes
            return self._eagerly(inputs, newest)
        kind.plan.ran_on(bucket, rows)
        kind.inputs.fill(bucket, inputs, newest)
        kind.replays[bucket]()
        self.replayed += 1
        return self._hidden[: sum(item.results for item in inputs)]

    @property
    def counts(self) -> GraphCounts:
        """What became of recordings, and of steps that had one."""
        recorded, failed = (
            sum(each) for each in zip(*((len(k.replays), k.plan.failures) for k in self._kinds), strict=True)
        )
        return GraphCounts(steps=self.replayed, recorded=recorded, failed=failed)

    @property
    def row_counts(self) -> list[int]:
        """Numbers of rows that graphs of single tokens may have, ascending."""
        return self._kinds[0].plan.row_counts

    @property
    def first(self) -> list[GraphShape]:
        """What to record before the first request, in this order: the most rows first."""
        shapes = [kind.shape(rows) for kind in self._kinds for rows in kind.plan.first]
        return sorted(shapes, key=lambda shape: shape.rows, reverse=True)

    def missed(self) -> GraphShape | None:
        """The kind and number of rows whose steps have cost most without a graph, if that is worth one."""
        due = [
            (kind.plan.spent(rows), kind.shape(rows)) for kind in self._kinds if (rows := kind.plan.next()) is not None
        ]
        return max(due, key=lambda each: each[0], default=(0.0, None))[1]

    def record(self, shape: GraphShape) -> None:
        """Record a graph; to be called by all ranks, while the device is busy with a step.

        Memory is planned for all graphs, so none should fail. One that did is tried again, as the plan says: what made it fail may
        have been another process's. (A capture that broke off may leave torch's allocator in the middle of it: then a later step
        fails, and the engine is started anew.)

        Raises:
            RuntimeError: with several ranks, the work itself failed: the others are waiting in it.
        """
        began = time.perf_counter()
        kind = next(each for each in self._kinds if each.name == shape.kind)
        replay: Work | None = None
        try:
            replay = self._recorder.record(lambda: kind.inputs.fill(shape.rows, (), None), self._work(kind, shape.rows))
        except RuntimeError as error:  # a device that has failed says so again in the next step
            if self._model.group.size > 1 and not isinstance(error, NotRecorded):
                raise
            log.warning("no CUDA graph for %d rows (%s): %s", shape.rows, shape.kind, error)
        made = replay is not None
        # A graph's sums over ranks include padding, so all ranks have it or none does.
        if not self._model.group.least(made) or replay is None:
            kind.plan.failed(shape.rows, time.perf_counter() - began)
            if kind.plan.failures == MOST_FAILURES:
                log.error("%d CUDA graphs could not be recorded: steps of other shapes will run without", MOST_FAILURES)
            return
        kind.replays[shape.rows] = replay
        seconds = time.perf_counter() - began
        kind.plan.was_recorded(shape.rows, seconds)
        log.debug("CUDA graph for %d rows (%s) recorded in %.3f s", shape.rows, shape.kind, seconds)

    def _eagerly(self, inputs: Sequence[SequenceInput], newest: Tensor) -> Tensor:
        batch = self._model.lay_out(inputs)
        batch.fill(newest)
        return self._model.compute(batch)

    def _work(self, kind: _Kind, rows: int) -> Work:
        """The forward pass over the buffers."""
        batch, hidden = kind.inputs.batch(rows), self._hidden[:rows]

        @torch.inference_mode()
        def work() -> None:
            self._model.compute(batch, hidden)

        return work
