"""Drafts: guesses of the tokens that follow a sequence's newest one, which a step verifies all at once.

Who guesses is hidden behind `Drafter`: the scheduler is given one, or none. What belongs here: how many guesses a request can
use and has room for. Never: how they are made, who decodes.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

from scheduler.kv.block_pool import BlockPool
from scheduler.types.request import Request
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import ChunkPhase, Step, StepResult


class DraftCandidate(NamedTuple):
    """A sequence whose next tokens may be guessed.

    Attributes:
        request_id: the sequence's.
        token_ids: all of its tokens, prompt and output; not to be changed, nor kept beyond the call.
        sampling: what the request asks of the sampler, and so what may come next.
        most: how many guesses can be used, at least 1; further ones are dropped. All candidates share the step, so fewer
            may be used of the later ones.
        prompt_length: how many of the tokens are the prompt.
        scope: what of other sequences may show in its answers' times: tenant, cache salt and adapter.
    """

    request_id: str
    token_ids: Sequence[int]
    sampling: SamplingParams
    most: int
    prompt_length: int = 0
    scope: Hashable = None


class Drafter(Protocol):
    """Proposes tokens. It may be wrong: the output stays the same and only takes longer.

    Attributes:
        name: what guesses, and its settings, in words: on a GPU, where the output is the same up to rounding only, answers depend
            on it.
        reads_predictions: whether it guesses from `SamplingParams.prediction_ids`.
    """

    name: str
    reads_predictions: bool

    def concerns(self, sampling: SamplingParams) -> bool:
        """Whether it may have guesses for requests with these settings. Others are never candidates, and nothing waits for them."""
        ...

    def waits(self, request_id: str, sampling: SamplingParams, known: int) -> bool:
        """Whether a sequence, of which `known` tokens are known and the next is being computed, is worth holding back until that is
        known, too, because guesses will follow it. Otherwise its next step is planned at once, without guesses."""
        ...

    def propose(self, candidates: Sequence[DraftCandidate]) -> Sequence[Sequence[int]]:
        """Guess what comes next, for each candidate in their order; an empty guess is allowed.

        One call has all sequences of a plan that decode and concern it. Those that had to wait for results when a step was
        planned come in a second call, before the step starts. There is none without a candidate.
        """
        ...

    def verified(self, request_id: str, proposed: int, accepted: int) -> None:
        """Of the guesses for a sequence that a step had, so many were right."""
        ...

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """A step that only decoded computed so many rows, guesses included, and brought so many tokens in this time."""
        ...

    def forget(self, request_id: str) -> None:
        """The request has ended: drop what is kept for it, if anything. It may never have been a candidate."""
        ...


class Drafting:
    """Proposals for one scheduler, limited to what a request may still generate and to the blocks there are.

    A guess continues known tokens. So a decode waits until all results of its sequence are in where the drafter says that this is
    worth it; nothing else is held back.

    Args:
        drafter: makes the guesses; None: there are none.
        pool: the scheduler's.
        context: longest request, in tokens.
    """

    def __init__(self, drafter: Drafter | None, pool: BlockPool, context: int) -> None:
        self._drafter = drafter
        self._pool = pool
        self._context = context

    @property
    def active(self) -> bool:
        """Whether there is a drafter."""
        return self._drafter is not None

    def concerns(self, request: Request) -> bool:
        """Whether there may be guesses for a request."""
        return self._drafter is not None and self._drafter.concerns(request.sampling)

    def ready(self, request: Request) -> bool:
        """Whether a request that could decode has nothing to wait for."""
        drafter = self._drafter
        if drafter is None or not request.in_flight or not drafter.concerns(request.sampling):
            return True
        return not (request.verifying or drafter.waits(request.request_id, request.sampling, len(request.tokens)))

    def observe(self, step: Step, result: StepResult) -> None:
        """A step has ended."""
        if self._drafter is None or any(chunk.phase is not ChunkPhase.DECODE for chunk in step.chunks):
            return
        self._drafter.observe(step.tokens, sum(len(each.token_ids) for each in result.results), result.seconds)

    def verified(self, request_id: str, proposed: int, accepted: int) -> None:
        """So many of a request's guesses were right."""
        if self._drafter is not None:
            self._drafter.verified(request_id, proposed, accepted)

    def ended(self, request: Request) -> None:
        """The request has ended."""
        if self._drafter is not None:
            self._drafter.forget(request.request_id)

    def drafts(self, requests: Sequence[Request], budget: int, idle_budget: int = 0) -> dict[str, Sequence[int]]:
        """At most `budget` guesses for requests that decode, by request id; their tables get the blocks for them. Of these at most
        `idle_budget` are for idle requests.

        Where all guesses do not fit, those of the first requests count. No request is preempted for the sake of a guess.
        """
        able = [request for request in requests if self.concerns(request) and not request.in_flight]
        left, idle_left = budget, min(budget, idle_budget)
        usable = [(r, most) for r in able if (most := self._most(r, idle_left if r.idle else left)) > 0]
        if self._drafter is None or not usable:
            return {}
        candidates = [
            DraftCandidate(
                request.request_id,
                request.tokens,
                request.sampling,
                most,
                len(request.prompt_ids),
                (request.tenant, request.root),
            )
            for request, most in usable
        ]
        drafts: dict[str, Sequence[int]] = {}
        for (request, _), guesses in zip(usable, self._drafter.propose(candidates), strict=True):
            # Those before it have taken tokens and blocks.
            most = self._most(request, min(left, idle_left) if request.idle else left)
            taken = drafts[request.request_id] = guesses[: max(most, 0)]
            left -= len(taken)
            idle_left -= len(taken) if request.idle else 0
            missing = self._pool.blocks_for(request.computed + 1 + len(taken)) - len(request.block_table)
            if missing > 0:
                request.block_table += self._pool.allocate(missing, request.block_table[-1])
        return drafts

    def _most(self, request: Request, budget: int) -> int:
        """How many guesses the request can use of `budget`."""
        # One token is sampled even without drafts, so they must leave room for it in each limit.
        left = min(request.output_limit - request.output_tokens, self._context - request.known) - 1
        room = (len(request.block_table) + self._pool.available) * self._pool.block_size - request.computed - 1
        return min(budget, left, room)
