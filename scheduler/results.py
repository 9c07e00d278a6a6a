"""Absorbs the results of steps and transfers: tokens become known, requests end, outputs are made.

What belongs here: one result at a time. Never: plans.
"""

from scheduler.chunks import ChunkBuilder
from scheduler.drafting import Drafting
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.prefix_cache import PrefixCache
from scheduler.kv.tiers.load_planner import FinishedLoad
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.request_table import RequestTable
from scheduler.trails import Trails
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import EngineStats, FinishReason, Output
from scheduler.types.output_kind import OutputKind
from scheduler.types.request import Request, RequestState
from scheduler.types.step import Chunk, ChunkResult


class ResultProcessor:
    """Absorbs the results of one scheduler's steps.

    Args:
        config: the scheduler's.
        pool: forgets contents that are in doubt.
        cache: gives keys to blocks that have become full of known tokens.
        transfers: forgets contents that are in doubt.
        table: the requests.
        chunks: counts accepted drafts.
        drafting: learns how many drafts were accepted.
        trails: writes down when loads ended.
        stats: the counters to update.
    """

    def __init__(
        self,
        *,
        config: SchedulerConfig,
        pool: BlockPool,
        cache: PrefixCache,
        transfers: TransferPlanner,
        table: RequestTable,
        chunks: ChunkBuilder,
        drafting: Drafting,
        trails: Trails,
        stats: EngineStats,
    ) -> None:
        self._context = config.context
        self._is_eos = config.eos_token_ids.__contains__
        self._pool = pool
        self._cache = cache
        self._transfers = transfers
        self._table = table
        self._chunks = chunks
        self._drafting = drafting
        self._trails = trails
        self._stats = stats

    def absorb(self, chunk: Chunk, result: ChunkResult, now: float) -> Output | None:
        """The output of the chunk's request; None if the request has ended or there is nothing new."""
        request = self._table.open.get(chunk.request_id)
        if request is None:
            return None
        self.on_chunk_done(request, chunk)
        if result.error is not None:
            return self.fail(request, result.error, now)
        if not (chunk.samples or result.prompt_logprobs) and request.sampling.max_tokens:
            return None  # the middle of a prompt
        output = Output(request_id=request.request_id)
        if result.prompt_logprobs:
            output.prompt_logprobs = request.send_logprobs(chunk.start, result.prompt_logprobs)
        reason = None
        if result.token_ids:
            reason = self._absorb_tokens(request, result, now, output)
            if chunk.draft_ids:
                self._count_drafts(request, chunk, result, output)
        elif not request.sampling.max_tokens and chunk.start + chunk.length >= len(request.prompt_ids):
            output.pooled = result.pooled
            reason = FinishReason.LENGTH if request.produces is OutputKind.TOKENS else FinishReason.STOP
        if reason is not None:
            final = self._table.finish(request, reason, now)
            output.finish_reason, output.times, output.trail = reason, final.times, final.trail
        return output if output.token_ids or output.prompt_logprobs or reason else None

    @staticmethod
    def on_chunk_done(request: Request, chunk: Chunk) -> None:
        """The chunk is no longer in flight."""
        request.in_flight -= chunk.samples > 0
        if chunk.draft_ids:
            request.verifying = False

    def on_loads_done(self, arrivals: list[FinishedLoad], now: float) -> None:
        """Loads have ended."""
        for request, whole in arrivals:
            self._trails.loaded(request, now, whole=whole)
            gained = request.computed - request.published * self._pool.block_size
            self._cache.publish(request)
            if not request.preemptions:
                request.times.cached_tokens += gained
                self._stats.prefix_hit_tokens += gained
            if not whole:  # it starts again from what is there: blocks after the gap may be shared with others
                self._table.put_back(request)

    def fail(self, request: Request, error: str, now: float) -> Output:
        """End the request. The cause may be in its KV, computed or found (a NaN spreads to all that follows): forget it."""
        self._pool.forget(request.block_table, {block for held in self._transfers.held() for block in held})
        self._transfers.forget(request.block_hashes[: len(request.block_table)])
        output = self._table.finish(request, FinishReason.ERROR, now)
        output.error = error
        return output

    def _count_drafts(self, request: Request, chunk: Chunk, result: ChunkResult, output: Output) -> None:
        """Those count as accepted that the request got; behind its end there may have been more."""
        proposed, accepted = len(chunk.draft_ids), min(len(result.token_ids) - 1, len(output.token_ids))
        self._stats.drafts_proposed += proposed
        self._stats.drafts_accepted += accepted
        request.times.drafts_accepted += accepted
        request.times.drafts_rejected += proposed - accepted
        if request.sampling.prediction_ids:
            output.times = request.times  # for `usage`, whoever ends the answer
        self._drafting.verified(request.request_id, proposed, accepted)

    def _absorb_tokens(self, request: Request, result: ChunkResult, now: float, output: Output) -> FinishReason | None:
        """Take the tokens up to the one that ends the request, if one does."""
        reason: FinishReason | None = None
        for token_id in result.token_ids:
            request.tokens.append(token_id)
            output.token_ids.append(token_id)
            reason = request.stop_cause(self._is_eos, self._context)
            if reason is not None:
                break
        ended_by_token = reason is FinishReason.STOP
        taken = len(output.token_ids)
        if result.complete and taken == len(result.token_ids):
            reason = FinishReason.STOP
        output.logprobs = result.logprobs[:taken]
        self._stats.generation_tokens += taken
        if request.times.first_token is None:
            request.times.first_token = now
            output.times = request.times
        if ended_by_token:
            output.stop_token = request.tokens[-1]
        if request.state is RequestState.RUNNING:
            if taken > 1:  # all but the newest were drafts: the step has computed their KV
                self._chunks.advance(request, taken - 1)
            # The KV of the newest token is computed in the next step at the earliest. So the block of a request's last token
            # is never published, and an abort must not remove the chunk on which a publication relies.
            if reason is None and self._cache.publish(request):
                self._chunks.published_by.add(request.request_id)
        return reason
