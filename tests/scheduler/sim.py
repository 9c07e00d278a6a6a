"""A worker and an engine loop without a model: KV is the hash of the prefix it stands for, so every read can be checked.

The token after a prefix is a function of that prefix alone, as with greedy decoding. Whatever the scheduler does (chunks,
sharing, preemption, aborts), each sequence must come out as `expected` says.
"""

from collections.abc import Callable
from typing import Protocol
from zlib import crc32

from scheduler.block_pool import BlockPool
from scheduler.config import SchedulerConfig
from scheduler.messages import AddRequest, FinishReason, Output
from scheduler.sampling_params import SamplingParams
from scheduler.scheduler import Scheduler
from scheduler.step import Chunk, ChunkResult, Step, StepResult, TokenLogprobs

VOCAB = 50
EOS = 7


def prefix_hash(tokens: list[int]) -> int:
    return crc32(bytes(tokens))


def next_token(tokens: list[int]) -> int:
    return prefix_hash(tokens) % VOCAB


def expected(prompt: list[int], sampling: SamplingParams, context: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) - len(prompt) < sampling.max_tokens and len(tokens) < context:
        tokens.append(next_token(tokens))
        output = len(tokens) - len(prompt)
        stops = (tokens[-1] == EOS and not sampling.ignore_eos) or tokens[-1] in sampling.stop_token_ids
        if stops and output >= sampling.min_tokens:
            break
    return tokens[len(prompt) :]


class Worker(Protocol):
    def run(self, step: Step) -> StepResult: ...


class SimWorker:
    """Runs steps on blocks that hold prefix hashes; fails when a chunk would read KV that is not its prefix's."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.kv: list[list[int | None]] = [[None] * block_size for _ in range(blocks)]
        self.tokens: dict[str, list[int]] = {}
        self.prompt_length: dict[str, int] = {}
        self.sampling: dict[str, SamplingParams] = {}
        self.max_tokens_in_step = 0
        self.last_step = -1

    def run(self, step: Step) -> StepResult:
        assert step.step_id > self.last_step, "steps run in order"
        self.last_step = step.step_id
        self.max_tokens_in_step = max(self.max_tokens_in_step, step.tokens)
        for new in step.new:
            self.tokens[new.request_id] = list(new.prompt_ids)
            self.prompt_length[new.request_id] = len(new.prompt_ids)
            self.sampling[new.request_id] = new.sampling
        ids = [chunk.request_id for chunk in step.chunks]
        assert len(set(ids)) == len(ids), "one chunk a request"
        written: set[tuple[int, int]] = set()
        for chunk in step.chunks:
            self._write(chunk, written)
        results = [self._result(chunk) for chunk in step.chunks]
        for request_id in step.retired:
            self.tokens.pop(request_id, None)
        return StepResult(step_id=step.step_id, results=results)

    def _write(self, chunk: Chunk, written: set[tuple[int, int]]) -> None:
        tokens = self.tokens[chunk.request_id]
        assert chunk.start + chunk.length <= len(tokens), "no token is computed before it is known"
        for position in range(chunk.start, chunk.start + chunk.length):
            slot = (chunk.block_table[position // self.block_size], position % self.block_size)
            assert slot not in written, "two hands write one slot"
            written.add(slot)
            self.kv[slot[0]][slot[1]] = prefix_hash(tokens[: position + 1])

    def _result(self, chunk: Chunk) -> ChunkResult:
        tokens = self.tokens[chunk.request_id]
        end = chunk.start + chunk.length
        for position in range(end):
            held = self.kv[chunk.block_table[position // self.block_size]][position % self.block_size]
            assert held == prefix_hash(tokens[: position + 1]), f"{chunk.request_id} reads foreign KV at {position}"
        result = ChunkResult(request_id=chunk.request_id)
        if self.sampling[chunk.request_id].prompt_logprobs is not None:
            stop = min(end + 1, self.prompt_length[chunk.request_id])
            result.prompt_logprobs = [
                TokenLogprobs(token_id=tokens[i], logprob=-float(i), rank=1, top=[])
                for i in range(chunk.start + 1, stop)
            ]
        if chunk.samples:
            assert end == len(tokens), "only the newest token's successor is sampled"
            result.token_id = next_token(tokens)
            tokens.append(result.token_id)
        return result


class Engine:
    """The engine's loop with the plan one step ahead, as the real one has it, one `tick` at a time."""

    def __init__(
        self,
        *,
        blocks: int,
        block_size: int = 4,
        caching: bool = True,
        worker: Worker | None = None,
        eos: frozenset[int] = frozenset({EOS}),
        **config: float,
    ) -> None:
        context = int(config.pop("context", blocks * block_size))
        self.config = SchedulerConfig(
            context=context,
            eos_token_ids=eos,
            fingerprint="sim",
            **config,  # type: ignore[arg-type]
        )
        self.scheduler = Scheduler(self.config, BlockPool(blocks, block_size, caching=caching))
        self.worker = worker or SimWorker(blocks, block_size)
        self.planned: Step | None = None
        self.now = 0.0
        self.outputs: dict[str, list[int]] = {}
        self.ends: dict[str, Output] = {}
        self.prompt_logprobs: dict[str, list[int]] = {}
        self.requests: dict[str, AddRequest] = {}
        self.after_step: Callable[[Step], None] = lambda step: None

    def add(self, request_id: str, prompt: list[int], *, priority: int = 0, salt: str = "", **sampling: object) -> None:
        params = SamplingParams(**{"max_tokens": 5, "temperature": 0.0, **sampling})  # type: ignore[arg-type]
        message = AddRequest(
            request_id=request_id, prompt_ids=prompt, sampling=params, priority=priority, cache_salt=salt
        )
        self.scheduler.add(message, self.now)
        self.requests[request_id] = message
        self.outputs[request_id] = []
        self.prompt_logprobs[request_id] = []

    def abort(self, request_id: str) -> None:
        output = self.scheduler.abort(request_id, self.now)
        if output is not None:
            self.absorb([output])

    def tick(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Run the planned step; while it "runs", plan the next one, then do what comes `meanwhile`."""
        self.now += 1
        step = self.next_step()
        assert step.chunks or not self.scheduler.has_work, "requests wait and nothing can run"
        self.planned = self.scheduler.schedule(self.now)
        assert self.planned.chunks or not self.could_run(), "the plan is empty and a running request could run"
        meanwhile()
        result = self.worker.run(step)
        self.absorb(self.scheduler.update(step, result, self.now))
        self.scheduler.check_integrity()
        self.after_step(step)

    def could_run(self) -> bool:
        return any(request.wants_step for request in self.scheduler._running.values())

    def fail_step(self) -> None:
        """The worker raises in the middle of a step: its requests end with an error, and nobody expects tokens of them."""
        self.now += 1
        step = self.next_step()
        self.planned = self.scheduler.schedule(self.now)
        failed = self.scheduler.fail(step, self.planned, "injected", self.now)
        self.planned = None
        for output in failed:
            del self.requests[output.request_id]
        self.absorb(failed)

    def next_step(self) -> Step:
        step, self.planned = self.planned, None
        return self.scheduler.schedule(self.now) if step is None else self.scheduler.refresh(step, self.now)

    def absorb(self, outputs: list[Output]) -> None:
        for output in outputs:
            assert output.request_id not in self.ends, "one terminal event a request"
            self.outputs[output.request_id] += output.token_ids
            self.prompt_logprobs[output.request_id] += [entry.token_id for entry in output.prompt_logprobs]
            if output.finish_reason is not None:
                self.ends[output.request_id] = output

    def drain(self, limit: int = 5000) -> None:
        for _ in range(limit):
            if self.scheduler.idle and (self.planned is None or not self.planned.chunks):
                break
            self.tick()
        assert not self.scheduler.has_work, f"not drained after {limit} steps"
        self.scheduler.check_integrity()

    def check_outputs(self) -> None:
        """Every request that ran to its end has exactly the tokens it would have alone."""
        for request_id, message in self.requests.items():
            end = self.ends[request_id]
            want = expected(message.prompt_ids, message.sampling, self.config.context)
            if end.finish_reason is FinishReason.ABORT:
                assert self.outputs[request_id] == want[: len(self.outputs[request_id])]
                continue
            assert self.outputs[request_id] == want, request_id
            if message.sampling.prompt_logprobs is not None:
                assert self.prompt_logprobs[request_id] == message.prompt_ids[1:]
