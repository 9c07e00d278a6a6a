"""One sequence on its way through the engine: a state machine with two counters.

There is no prefill phase and no decode phase. `computed` (tokens whose KV is resident or planned) catches up with `known`
(tokens that exist or are being sampled); chunked prefill, prefix hits and recomputation after a preemption are all just that.

    tokens        |------ prompt ------|-- output --|· in flight ·|
    computed      |=================>..............................|      may be anywhere up to `known`
    block_table   |  32  |  32  |  32  |  32  |  32  |                    covers at least `computed`
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import NamedTuple

from scheduler.types.block_hash import BlockKey, block_hash
from scheduler.types.messages import IDLE_PRIORITY, FinishReason, RequestTimes
from scheduler.types.output_kind import OutputKind
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import TokenLogprobs
from scheduler.types.trail import Trail


class RequestState(Enum):
    """Where a request is. Only the scheduler moves it, along WAITING -> RUNNING -> (WAITING ->) FINISHED."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class SwappedTail(NamedTuple):
    """The copy of a partly filled last block. Its key is made of the tokens that were computed, so only equal prompts match it."""

    block_key: BlockKey
    end: int  # tokens computed when it was made
    own: bool = True  # nobody else has a use for it: it goes when this request has it back, or has ended


@dataclass(slots=True, eq=False)
class ForkTail:
    """What a sequence that has ended leaves for those that continue it, beside its full blocks."""

    end: int  # tokens that it computed
    keys: list[bytes]  # of its full blocks
    block: int | None = None  # its partly filled last block; None: there is none, or it was given up


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """A sequence and where it stands. Times are seconds of the caller's clock."""

    request_id: str
    prompt_ids: list[int]
    sampling: SamplingParams
    priority: int
    arrival: int  # how many came before it: the tie-break everywhere
    root: bytes  # the hash on which the first block's hash builds
    times: RequestTimes
    trail: Trail = field(default_factory=Trail)
    own_priority: int = 0
    tenant: str = ""
    weight: float = 1.0
    adapter: str = ""
    produces: OutputKind = OutputKind.TOKENS
    pair_start: int = 0
    generated_ids: list[int] = field(default_factory=list)  # output that existed when the request arrived
    hand_over: bool = False  # another engine goes on after the first token that this one generates
    output_limit: int = field(init=False)  # most output tokens here: `max_tokens`, or fewer if it is handed over
    tokens: list[int] = field(init=False)  # prompt and known output
    # In the waiting queue, within its priority: its arrival, or that of a tenant's other request.
    place: int = field(init=False)
    seen_step: int = -1  # `last_step` when it was last looked at
    # No later than this it last had a chunk, or was queued, as far as was looked at.
    waits_since: float = field(init=False)
    in_line_since: float = field(init=False)  # it was queued, or queued again
    overdue: bool = False  # it has waited so long that its priority was raised
    state: RequestState = RequestState.WAITING
    in_flight: int = 0  # tokens that planned steps are certain to produce; accepted drafts are not among them
    verifying: bool = False  # drafts are in flight: how many tokens will result is open, so nothing is planned on them
    computed: int = 0
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)  # of the leading full blocks of `tokens`
    names: Sequence[bytes] = ()  # hashes of leading blocks, also of ones yet to come, in case the caller knows them
    published: int = 0  # leading blocks of the table that were offered to the content index
    usable: tuple[int, int] = (-1, 0)  # of so many tokens, how many leading blocks may be shared
    offered: int = 0  # leading blocks that were offered to the tiers below while it runs
    high_water: int = 0  # most tokens ever computed: what lies below and is planned again is recomputation
    preemptions: int = 0
    passed: int = 0  # how often a request behind it in the waiting queue came in before it
    last_step: int = -1  # the step that last had a chunk of this request
    started: bool = False  # admitted at least once: what a start reports and counts is reported and counted once
    announced: bool = False  # the worker knows the sequence
    awaits: bytes | None = None  # content another request is about to compute; admission waits for it
    prompt_logprobs_sent: int = 0
    loading: bool = False  # blocks of its table are on their way from a lower tier: no chunk until they are there
    swapped_tail: SwappedTail | None = None  # saved when it was preempted
    forks: bool = False  # others may continue it when it has ended
    left_tail: ForkTail | None = None  # for them
    forked_from: ForkTail | None = None  # of the one that it continues
    copied: int | None = (
        None  # a block that its first chunk copies into the one that it writes to; its own while it runs
    )

    def __post_init__(self) -> None:
        self.tokens = self.prompt_ids + self.generated_ids
        self.place = self.arrival
        self.waits_since = self.in_line_since = self.times.queued
        most = self.sampling.max_tokens
        self.output_limit = min(most, len(self.generated_ids) + 1) if self.hand_over else most
        if self.generated_ids:
            # Another engine has computed all but the newest token, and has sent the prompt's log-probabilities.
            self.high_water = len(self.tokens) - 1
            self.prompt_logprobs_sent = len(self.prompt_ids) - 1

    @property
    def idle(self) -> bool:
        """Whether it runs on what nobody else needs."""
        return self.priority == IDLE_PRIORITY

    @property
    def known(self) -> int:
        """Tokens that exist or are in flight."""
        return len(self.tokens) + self.in_flight

    @property
    def remaining(self) -> int:
        """Tokens still to compute before the next one can be sampled."""
        return self.known - self.computed

    @property
    def output_tokens(self) -> int:
        """Output tokens, those in flight included."""
        return self.known - len(self.prompt_ids)

    @property
    def to_generate(self) -> int:
        """Most tokens that were still to be generated when the request arrived."""
        return self.output_limit - len(self.generated_ids)

    @property
    def prefilling(self) -> bool:
        """Whether more than the newest token is missing: the prompt, or a recomputation."""
        return self.remaining > 1 or self.computed < len(self.prompt_ids)

    @property
    def wants_step(self) -> bool:
        """Whether there is something to compute. Not once the last allowed token is in flight: its KV is never needed."""
        prompt_open = self.computed < len(self.prompt_ids)
        return self.remaining > 0 and (prompt_open or self.output_tokens < self.output_limit)

    @property
    def decodes(self) -> bool:
        """Whether exactly its newest token is to be computed: `wants_step` and not `prefilling`, evaluated together.

        Every plan asks this of every running request.
        """
        known, prompt = len(self.tokens) + self.in_flight, len(self.prompt_ids)
        return known - self.computed == 1 and self.computed >= prompt and known - prompt < self.output_limit

    @property
    def reads_cache(self) -> bool:
        """Whether it may use cached KV. Not if the worker needs every position's result: for prompt logprobs that are still to be
        sent, or to pool over the prompt."""
        if self.produces is not OutputKind.TOKENS:
            return False
        return self.sampling.prompt_logprobs is None or self.prompt_logprobs_sent >= len(self.prompt_ids) - 1

    def fork(self, request_id: str, arrival: int, token_id: int, now: float) -> "Request":
        """A request that continues this one, which has ended after one token, with another token in its place, for one more.

        It has this one's place in the queue, and what a start reports was reported of this one.
        """
        generated, tail = [*self.tokens[len(self.prompt_ids) : -1], token_id], self.left_tail
        child = Request(
            request_id=request_id,
            prompt_ids=self.prompt_ids,
            sampling=replace(self.sampling, max_tokens=len(generated) + 1, prompt_logprobs=None),
            priority=self.priority,
            arrival=arrival,
            root=self.root,
            times=self.times,
            own_priority=self.own_priority,
            tenant=self.tenant,
            weight=self.weight,
            adapter=self.adapter,
            generated_ids=generated,
            overdue=self.overdue,
            block_hashes=list(tail.keys) if tail is not None else [],
            offered=self.offered,
            preemptions=self.preemptions,
            started=True,
            forks=True,
            forked_from=tail,
        )
        child.place = self.place
        child.waits_since = child.in_line_since = now
        return child

    def longest(self) -> int:
        """Most tokens when finished; the last of them needs no KV."""
        return len(self.prompt_ids) + self.output_limit

    def send_logprobs(self, start: int, entries: list[TokenLogprobs]) -> list[TokenLogprobs]:
        """Those of a chunk's entries that were not sent before: after a preemption the same positions come again.

        Args:
            start: the chunk's; the entries begin with position `start + 1`.
            entries: those of the chunk's prompt tokens.
        """
        fresh = entries[max(0, self.prompt_logprobs_sent - start) :]
        self.prompt_logprobs_sent += len(fresh)
        return fresh

    def extend_hashes(self, block_size: int) -> None:
        """The hashes of blocks that have become full of known tokens."""
        hashes, tokens = self.block_hashes, self.tokens
        if self.names:
            hashes += self.names[len(hashes) : len(tokens) // block_size]
        parent = hashes[-1] if hashes else self.root
        for begin in range(len(hashes) * block_size, len(tokens) - block_size + 1, block_size):
            parent = block_hash(parent, tokens[begin : begin + block_size])
            hashes.append(parent)

    def cut_tail(self, block_size: int) -> tuple[BlockKey, int] | None:
        """Take the partly filled last block out of the table and remember it as `swapped_tail`. Full blocks are published.

        Returns:
            Its key and the block's id; None if there is none.
        """
        begin, end = self.published * block_size, self.computed
        if not begin < end <= len(self.tokens) or end - begin >= block_size:
            return None
        self.swapped_tail = self._tail(end, block_size)
        return self.swapped_tail.block_key, self.block_table.pop(self.published)

    def expect_tail(self, block_size: int) -> None:
        """Another engine has computed all but the newest token: what it saved of the partly filled last block is `swapped_tail`."""
        end = len(self.tokens) - 1
        if end % block_size:
            # Other choices of the prompt have the same.
            self.swapped_tail = self._tail(end, block_size)._replace(own=False)

    def _tail(self, end: int, block_size: int) -> SwappedTail:
        """The part of a block that begins with the last multiple of the block size before `end`."""
        full = end // block_size
        self.extend_hashes(block_size)
        parent = self.block_hashes[full - 1] if full else self.root
        token_ids = tuple(self.tokens[full * block_size : end])
        return SwappedTail(BlockKey(block_hash(parent, token_ids), token_ids), end)

    def stop_cause(self, is_eos: Callable[[int], bool], context: int) -> FinishReason | None:
        """Why the newest known token ends the request; None if it does not."""
        token_id, output = self.tokens[-1], len(self.tokens) - len(self.prompt_ids)
        ends = (is_eos(token_id) and not self.sampling.ignore_eos) or token_id in self.sampling.stop_token_ids
        if ends and output >= self.sampling.min_tokens:
            return FinishReason.STOP
        if output >= self.sampling.max_tokens or len(self.tokens) >= context:
            return FinishReason.LENGTH
        return FinishReason.HANDED_OVER if output >= self.output_limit else None
