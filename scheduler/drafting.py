"""Drafts: guesses of the tokens that follow a sequence's newest one, which a step verifies all at once.

Who guesses is hidden behind `Drafter`: the scheduler is given one, or none. What belongs here: how many guesses a request can
use and has room for. Never: how they are made, who decodes.
"""

from collections.abc import Sequence
from typing import Protocol

from scheduler.kv.block_pool import BlockPool
from scheduler.types.request import Request


class Drafter(Protocol):
    """Proposes tokens. It may be wrong: the output stays the same and only takes longer."""

    def propose(self, request_id: str, token_ids: Sequence[int], most: int) -> Sequence[int]:
        """Guess what comes next.

        Args:
            request_id: the sequence's.
            token_ids: all of its tokens; not to be changed.
            most: how many guesses can be used, at least 1; further ones are dropped.
        """
        ...


class Drafting:
    """Proposals for one scheduler, limited to what a request may still generate and to the blocks there are.

    Without a drafter nothing is held back. With one, a decode waits until all results of its sequence are in, because a
    guess continues known tokens.

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

    def ready(self, request: Request) -> bool:
        """Whether a request that could decode has nothing to wait for."""
        return self._drafter is None or not request.in_flight

    def drafts(self, request: Request, budget: int) -> Sequence[int]:
        """At most `budget` guesses for a request that decodes; its table gets the blocks for them.

        No request is preempted for the sake of a guess.
        """
        if self._drafter is None:
            return ()
        # One token is sampled even without drafts, so they must leave room for it in each limit.
        left = min(request.sampling.max_tokens - request.output_tokens, self._context - request.known) - 1
        room = (len(request.block_table) + self._pool.available) * self._pool.block_size - request.computed - 1
        most = min(budget, left, room)
        if most < 1:
            return ()
        drafts = self._drafter.propose(request.request_id, request.tokens, most)[:most]
        missing = self._pool.blocks_for(request.computed + 1 + len(drafts)) - len(request.block_table)
        if missing > 0:
            request.block_table += self._pool.allocate(missing, request.block_table[-1])
        return drafts
