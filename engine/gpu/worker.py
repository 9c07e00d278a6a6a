"""Runs steps on one GPU: the same sequences in, the same kind of results out, as on the CPU.

A step is two halves. `submit` gives the device all its work and returns without waiting: ids in flight are taken from a table of
newest tokens on the device, tokens are drawn there and written back into that table, and one small copy to the host begins.
`PendingStep.result` waits for that copy. So step N+1 may be submitted before N's result is asked for; `run` is both in a row.

While the device is busy, `result` uses the time to record the CUDA graph that would have saved most (`engine.gpu.graphs`).

What belongs here: the order of a step. Never: policy, text, kernels.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from engine.gpu.events import AsyncCopy, DeviceEvent
from engine.gpu.graph_policy import GraphPlan, GraphShape
from engine.gpu.graphs import CudaRecorder, EagerRecorder, StepGraphs
from engine.gpu.model import GpuModel
from engine.gpu.sampler import Draw, GpuSampler, Member
from engine.ipc.failures import DeviceLost
from engine.pooling.pooler import Pooler, by_kind, deliver, pool_rows
from engine.sampling.edits import Edit
from engine.sampling.prompt_logprobs import score_prompts
from engine.sampling.sampled_rows import SampledRow, first_rows, take, wanted_rows
from engine.sampling.sampler import CpuSampler, Sampled
from engine.sequence import Sequence as TokenSequence
from engine.sequence_input import SequenceInput, adapter_rows
from engine.tensor_parallel.commands import RankCommand, Record, Submit, Warmup
from kernels.gpu.runtime import sent
from scheduler.types.output_kind import OutputKind
from scheduler.types.step import Chunk, ChunkResult, GraphCounts, SequenceInit, Step, StepResult

_FIRST_PLACES = 256


class PendingStep:
    """A step that the device has been given."""

    def __init__(self, worker: "GpuWorker", step: Step, results: list[ChunkResult], began: float) -> None:
        self._worker = worker
        self._step_id = step.step_id
        self.results = results
        self._began = began
        self._seconds = 0.0
        self._draws: list[tuple[list[SampledRow], list[Member], Draw | list[Sampled]]] = []
        self._pooled: list[tuple[int, OutputKind, AsyncCopy]] = []
        self._end: DeviceEvent | None = None
        self.finished = False

    def close(self, device: torch.device) -> None:
        """Note that the whole step has been given to the device."""
        self._end = DeviceEvent(device)

    def add(self, rows: list[SampledRow], members: list[Member], drawn: "Draw | list[Sampled]") -> None:
        """Note that the tokens after these rows, of these members, will come from `drawn`."""
        self._draws.append((rows, members, drawn))
        for member in members:
            member.ahead += 1

    def add_pooled(self, place: int, kind: OutputKind, values: Tensor) -> None:
        """Note that the chunk at `place` brings these numbers, fp32 [n]."""
        self._pooled.append((place, kind, AsyncCopy(values)))

    def result(self) -> StepResult:
        """Wait for the step, and for those before it. Another call returns the same."""
        with self._worker.recognizing_losses():
            self._worker.finish_up_to(self)
        return StepResult(
            step_id=self._step_id, results=self.results, seconds=self._seconds, graphs=self._worker.graph_counts
        )

    def finish(self) -> None:
        """Wait for the device, and append the tokens to their sequences; steps are finished in order."""
        self.finished = True
        if self._end is not None:
            self._end.wait()
        for place, kind, values in self._pooled:
            deliver(values.wait().tolist(), kind, self.results[place])
        for _, members, _ in self._draws:
            for member in members:
                member.ahead -= 1
        for rows, members, drawn in self._draws:
            for row, member, token in zip(rows, members, _sampled(drawn, members), strict=True):
                take(row, token, member.sequence, self.results[row[0]], self._worker.complete)

    def took(self, since: float) -> float:
        """Note how long the step took: from `since`, the end of the one before, or from its own start, if that was later. Returns
        now, in seconds as of `time.perf_counter`."""
        now = time.perf_counter()
        self._seconds = now - max(self._began, since)
        return now


class GpuWorker:
    """One GPU (or, where Triton interprets, CPU tensors), behind the protocol `engine.worker.Worker`.

    Args:
        model: with its pool.
        device_sampler: draws most rows.
        host_sampler: draws what the device's cannot, and scores prompts.
        graphs: runs steps, on graphs where there are some.
        adapters: names of the model's LoRA adapters; rows refer to them by their place, from 1.
        send: of the first of several ranks: tells the others what it is about to do, so that they do it too.
        poolers: make what is not tokens.
        step_tokens: most rows of a step.
    """

    depth = 2  # the next step waits on the device, not on the host

    def __init__(
        self,
        model: GpuModel,
        device_sampler: GpuSampler,
        host_sampler: CpuSampler,
        graphs: StepGraphs,
        send: Callable[[RankCommand], None] | None = None,
        *,
        adapters: Iterable[str] = (),
        poolers: Iterable[Pooler] = (),
        step_tokens: int = 1,
    ) -> None:
        self._model = model
        self._step_tokens = step_tokens
        self._adapters = adapter_rows(adapters)
        self._poolers = by_kind(poolers)
        self._device_sampler = device_sampler
        self._host_sampler = host_sampler
        self._graphs = graphs
        self._send = send or (lambda command: None)
        self._alone = model.group.size == 1
        self._device = device = model.device
        self._members: dict[str, Member] = {}
        self._newest = torch.zeros(_FIRST_PLACES, dtype=torch.int64, device=device)
        self._free = list(range(_FIRST_PLACES))
        self._pending: deque[PendingStep] = deque()
        self._ended = 0.0  # when the last step ended

    @classmethod
    def of(
        cls,
        model: GpuModel,
        edits: Sequence[Edit],
        plan: GraphPlan,
        dtype: torch.dtype,
        send: Callable[[RankCommand], None] | None = None,
        *,
        adapters: Iterable[str] = (),
        poolers: Iterable[Pooler] = (),
        step_tokens: int = 1,
        chunks: GraphPlan | None = None,
    ) -> "GpuWorker":
        """A worker on the model's device; on CPU tensors, what would be graphs runs eagerly over the same buffers. `plan` is for
        steps of single tokens, `chunks` for those with chunks."""
        vocab = model.config.vocab_size
        recorder = CudaRecorder(model.device) if model.device.type == "cuda" else EagerRecorder()
        graphs = StepGraphs(model, plan, recorder, dtype, chunks=chunks)
        return cls(
            model,
            GpuSampler(vocab, edits, model.device),
            CpuSampler(vocab, edits),
            graphs,
            send,
            adapters=adapters,
            poolers=poolers,
            step_tokens=step_tokens,
        )

    @property
    def blocks(self) -> Tensor:
        """The KV blocks as bytes, the scales of an fp8 pool included."""
        return self._model.pool.memory

    def warm_up(self) -> None:
        """Run all that a forward pass and edits may need once, on all ranks, the widest step first."""
        self._send(Warmup())
        self._model.warm_up(self._step_tokens, self._graphs.row_counts)
        self._device_sampler.warm_up()

    def record_first(self) -> None:
        """Record the graphs that are there before the first request, on all ranks."""
        for shape in self._graphs.first:
            self.record(shape)

    def record(self, shape: GraphShape) -> None:
        """Record a graph, on all ranks."""
        self._send(Record(shape.kind, shape.rows))
        self._graphs.record(shape)

    @property
    def graph_counts(self) -> GraphCounts:
        """CUDA graphs so far: recorded, failed, steps that ran on them."""
        return self._graphs.counts

    @property
    def replayed(self) -> int:
        """Steps so far that ran on a CUDA graph."""
        return self._graphs.replayed

    def complete(self, sequence: TokenSequence) -> bool:
        """Whether nothing may follow the tokens of a sequence, because an edit says so."""
        return self._host_sampler.complete(sequence)

    def run(self, step: Step) -> StepResult:
        """Compute one step, and wait for it."""
        return self.submit(step).result()

    def submit(self, step: Step) -> PendingStep:
        """Give the device a step, and return without waiting for it.

        Exceptions: it waits for the steps before it if a chunk that samples belongs to a request that needs its tokens on the host
        (`Member.needs_host_tokens`), and for its own work if the host draws or a prompt is scored.
        """
        with self.recognizing_losses():
            self._send(Submit(step))
            return self._submit(step)

    def _submit(self, step: Step) -> PendingStep:
        pending = PendingStep(
            self, step, [ChunkResult(request_id=chunk.request_id) for chunk in step.chunks], time.perf_counter()
        )
        self._announce(step.new)
        if step.chunks:
            self._compute(step.chunks, pending)
        pending.close(self._device)
        self._pending.append(pending)
        for request_id in step.retired:
            self._retire(request_id)
        return pending

    def finish_up_to(self, pending: PendingStep) -> None:
        """Finish the steps up to this one, for `PendingStep.result`."""
        shape = None if pending.finished else self._graphs.missed()
        if shape is not None:
            self.record(shape)
        while not pending.finished:
            self._finish_oldest()

    @contextmanager
    def recognizing_losses(self) -> Iterator[None]:
        """Recognize errors after which no step can succeed: those after which CUDA refuses everything else, and with several ranks
        every error, since the others go on without this one.

        Raises:
            DeviceLost: instead of them.
        """
        try:
            yield
        except Exception as error:
            if not self._alone:
                raise DeviceLost(f"the ranks are out of step: {error!r}") from error
            if not self._answers():
                raise DeviceLost(str(error)) from error
            raise

    def _answers(self) -> bool:
        """Whether the device still works: the errors of a lost one differ with what launched the kernel."""
        try:
            DeviceEvent(self._device).wait()
        except RuntimeError:
            return False
        return True

    def _finish_oldest(self) -> None:
        oldest = self._pending.popleft()
        oldest.finish()
        self._ended = oldest.took(self._ended)

    def _announce(self, new: Iterable[SequenceInit]) -> None:
        for init in new:
            if not self._free:
                self._free += range(len(self._newest), 2 * len(self._newest))
                self._newest = torch.cat((self._newest, torch.zeros_like(self._newest)))
            self._members[init.request_id] = self._device_sampler.member(
                TokenSequence.from_init(init), self._free.pop()
            )

    def _retire(self, request_id: str) -> None:
        member = self._members.pop(request_id, None)
        self._host_sampler.forget(request_id)
        for pooler in self._poolers.values():
            pooler.forget(request_id)
        if member is not None:
            self._device_sampler.forget(member)
            self._free.append(member.place)

    def _copy(self, chunks: list[Chunk]) -> None:
        """Give forks blocks of their own."""
        forks = [(chunk, chunk.copy_from) for chunk in chunks if chunk.copy_from is not None]
        if forks:
            size = self._model.pool.block_size
            targets = [chunk.block_table[chunk.start // size] for chunk, _ in forks]
            self.blocks[self._sent(targets)] = self.blocks[self._sent([source for _, source in forks])]

    @torch.inference_mode()
    def _compute(self, chunks: list[Chunk], pending: PendingStep) -> None:
        members = [self._members[chunk.request_id] for chunk in chunks]
        sequences = [member.sequence for member in members]
        wanted = [
            wanted_rows(chunk, sequence, self._poolers) for chunk, sequence in zip(chunks, sequences, strict=True)
        ]
        inputs = [
            _input(chunk, member, rows, self._adapters[member.sequence.adapter])
            for chunk, member, rows in zip(chunks, members, wanted, strict=True)
        ]
        self._copy(chunks)
        hidden = self._graphs.forward(inputs, self._newest)
        results = pending.results
        score_prompts(
            hidden,
            chunks,
            sequences,
            wanted,
            results,
            logits=lambda rows: self._model.logits(rows).float(),
            sampler=self._host_sampler,
        )
        for place, values in pool_rows(hidden, chunks, sequences, wanted, self._poolers):
            pending.add_pooled(place, sequences[place].produces, values)
        if any(chunk.samples and member.needs_host_tokens for chunk, member in zip(chunks, members, strict=True)):
            while self._pending:
                self._finish_oldest()
        rows = first_rows(chunks, wanted, results)
        guessed = [row for row in rows if row[2]]
        self._draw(hidden, [row for row in rows if not row[2]] if guessed else rows, members, pending)
        if guessed:
            self._verify(hidden, guessed, members, results)

    def _draw(self, hidden: Tensor, rows: list[SampledRow], members: list[Member], pending: PendingStep) -> None:
        """Sample after these rows, the only ones of their chunks. `members` are those of all chunks."""
        for by_host in (False, True):
            some = [row for row in rows if members[row[0]].by_host == by_host]
            if some:
                drawing = [members[place] for place, _, _ in some]
                pending.add(some, drawing, self._sample_after(hidden, some, drawing))

    def _verify(
        self, hidden: Tensor, rows: list[SampledRow], members: list[Member], results: list[ChunkResult]
    ) -> None:
        """Sample after rows with drafts behind them, while the drafts hold. The host compares, so it waits for each token."""
        for by_host in (False, True):
            some = [row for row in rows if members[row[0]].by_host == by_host]
            while some:
                drawing = [members[place] for place, _, _ in some]
                sampled = _sampled(self._sample_after(hidden, some, drawing, verifying=True), drawing)
                following = [
                    take(row, token, member.sequence, results[row[0]], self.complete)
                    for row, member, token in zip(some, drawing, sampled, strict=True)
                ]
                some = [row for row in following if row is not None]

    def _sample_after(
        self, hidden: Tensor, rows: list[SampledRow], members: list[Member], *, verifying: bool = False
    ) -> "Draw | list[Sampled]":
        """One token after each row; `members` are those of the rows. The host draws for all of them, or for none."""
        indices = [index for _, index, _ in rows]
        picked = hidden if indices == list(range(len(hidden))) else hidden[self._sent(indices)]
        tokens, drawn = self._sample(self._model.logits(picked), members, verifying=verifying)
        self._newest[self._sent([member.place for member in members])] = tokens
        return drawn

    def _sample(self, logits: Tensor, members: list[Member], *, verifying: bool) -> tuple[Tensor, Draw | list[Sampled]]:
        if not members[0].by_host:
            return self._device_sampler.sample(logits, members, verifying=verifying)
        sampled = self._host_sampler.sample(logits.float(), [member.sequence for member in members])
        return self._sent([token.token_id for token in sampled]), sampled

    def _sent(self, values: list[int]) -> Tensor:
        return sent(torch.tensor(values), self._device)


def _sampled(drawn: "Draw | list[Sampled]", members: list[Member]) -> list[Sampled]:
    """Wait for what was drawn for these members."""
    return drawn if isinstance(drawn, list) else drawn.wait(members)


def _input(chunk: Chunk, member: Member, wanted: int, adapter: int) -> SequenceInput:
    """The chunk's tokens. The newest id, if it was sampled here, is taken from the device, whether the host knows it or not."""
    sequence, end = member.sequence, chunk.start + chunk.length
    ids = sequence.tokens[chunk.start : end] + chunk.draft_ids
    from_device = end == member.length > sequence.announced_length
    return SequenceInput(
        token_ids=ids + [0] * (chunk.length - len(ids)),
        start=chunk.start,
        block_table=chunk.block_table,
        wanted=wanted,
        newest=member.place if from_device else None,
        adapter=adapter,
    )
