"""Chunks: what follows once it is decided how many tokens of a step a request gets.

A plan counts on its steps: `computed` advances at once, full blocks get their keys, and a token that will be sampled is in
flight. What belongs here: this bookkeeping. Never: who gets how many tokens.
"""

from collections.abc import Sequence
from dataclasses import replace

from scheduler.kv.prefix_cache import PrefixCache
from scheduler.policies.base import SchedulingPolicy
from scheduler.trails import Trails
from scheduler.types.messages import EngineStats
from scheduler.types.request import Request
from scheduler.types.step import Chunk, ChunkPhase, SequenceInit, Step

_NO_DRAFTS: list[int] = []  # of all chunks without drafts; never changed


class ChunkBuilder:
    """Adds chunks to the steps of one scheduler.

    Attributes:
        published_by: ids of requests with a block that was published on the strength of the newest plan. Others may already
            build on it, so its chunk is computed even if the request has ended.
    """

    def __init__(self, cache: PrefixCache, policy: SchedulingPolicy, trails: Trails, stats: EngineStats) -> None:
        self.published_by = set[str]()
        self._cache = cache
        self._policy = policy
        self._trails = trails
        self._stats = stats

    def prefill(self, step: Step, request: Request, length: int) -> None:
        """The request computes `length` tokens of its prompt or of a recomputation; the last one samples."""
        samples = int(request.computed + length == request.known and request.sampling.max_tokens > 0)
        self._trails.chunk(request, step, length)
        self._add(step, request, ChunkPhase.PREFILL, length, samples)

    def decode(self, step: Step, request: Request, draft_ids: Sequence[int] = ()) -> None:
        """The request computes its newest token and the drafts after it.

        The KV of drafts does not count as computed until they are accepted.
        """
        request.verifying = bool(draft_ids)
        chunk = self._add(step, request, ChunkPhase.DECODE, 1, 1)
        if draft_ids:
            chunk.draft_ids = list(draft_ids)
            chunk.length += len(draft_ids)
            chunk.samples += len(draft_ids)

    def _add(self, step: Step, request: Request, phase: ChunkPhase, length: int, samples: int) -> Chunk:
        # Runs once for each row of each step: arguments are positional, and `advance` is written out.
        if not request.announced:
            request.announced = True
            step.new.append(_init(request))
        start = request.computed
        chunk = Chunk(
            request_id=request.request_id,
            start=start,
            length=length,
            block_table=request.block_table.copy(),
            phase=phase,
            samples=samples,
            draft_ids=_NO_DRAFTS,
        )
        if request.copied is not None:  # a fork's only chunk
            chunk.copy_from = request.copied
        step.chunks.append(chunk)
        if samples:
            request.in_flight += 1
        request.last_step = step.step_id
        request.computed = start + length
        self.count(request, start)
        if self._cache.publish(request):
            self.published_by.add(request.request_id)
        return chunk

    def advance(self, request: Request, tokens: int) -> None:
        """Count `tokens` more tokens of the request as computed, some perhaps for the first time, the others again."""
        request.computed += tokens
        self.count(request, request.computed - tokens)

    def count(self, request: Request, start: int) -> None:
        """Charge the request for its tokens from `start` to `computed`."""
        computed, high_water = request.computed, request.high_water
        if high_water > start:
            self._stats.recomputed_tokens += min(computed, high_water) - start
        if computed > high_water:
            self._policy.on_tokens(request, max(start, high_water), computed)
            request.high_water = computed


def _init(request: Request) -> SequenceInit:
    return SequenceInit(
        request_id=request.request_id,
        prompt_ids=request.prompt_ids,
        sampling=replace(request.sampling, prediction_ids=()) if request.sampling.prediction_ids else request.sampling,
        generated_ids=request.generated_ids,
        adapter=request.adapter,
        produces=request.produces,
        pair_start=request.pair_start,
    )
