"""Fair share per tenant: virtual token counters (Sheng et al. 2024, "Fairness in Serving Large Language Models", OSDI'24).

Each tenant has a counter of the service it was given, in prompt tokens, divided by its weight. The waiting tenant
with the smallest counter goes first. Nothing is kept idle for anybody: a tenant that waits alone gets everything
(work-conserving).

As in the paper (algorithm 2)
    lift      a tenant that had no request waiting starts at the smallest counter of those that wait, or at that of the last
              one that left the queue: time spent away gives no claim
    cost      a prompt token counts 1, a generated one `decode_price`

Beyond it
    credit    the lift ends `credit` below that. A tenant that takes less than its share is therefore *behind*, and its next
              requests are served before those of others until the credit is used up. Without it a light tenant would share
              every step half and half with an aggressor, and wait at least twice as long.
    pledges   prompts are computed in chunks, so what an admitted prompt will cost counts in the queue at once, and for shares
              of a step when it is computed
    decodes   those of tenants ahead run on what the prompts of tenants behind leave of a step
    room      a tenant behind preempts one ahead if the difference exceeds `margin` and what the victim loses

Prompt tokens found in the cache cost nothing (no step computes them), and neither do tokens computed again after a
preemption (that was the server's choice). So a difference between two counters is useful work, every preemption for room
needs one greater than the work it destroys, and tokens thrown away never exceed those served.

What belongs here: counters and what follows from comparing them. Never: blocks, budgets.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from scheduler.policies.base import Rank, SchedulingPolicy, yields
from scheduler.policies.token_cost import TokenCost
from scheduler.policies.waiting_queue import WaitingQueue, Warm
from scheduler.types.request import Request
from scheduler.types.step import ChunkPhase, Step, StepResult

UNIT = 1_000_000  # counts one prompt token of a tenant of weight 1; integers add up to the same sum in any order
MAX_TENANTS = 4096  # counters kept of tenants without an open request


class FairPolicy(SchedulingPolicy):
    """Priority, then the tenant's counter, then arrival.

    Args:
        cost: the cost of a generated token.
        credit: in prompt tokens; adds to the paper's bound on the difference between two busy tenants.
        margin: in prompt tokens; for smaller differences nobody is held back or preempted.
        weights: weights of tenants by name; those of others come with their requests. Twice the weight is twice the share.
    """

    weighs_decodes = True

    def __init__(self, cost: TokenCost, *, credit: int, margin: int, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.counters: dict[str, int] = {}
        self._cost = cost
        self._credit = credit * UNIT
        self._margin = margin * UNIT
        self._weights = dict(weights)
        self._open = Counter[str]()
        self._pledged = Counter[str]()  # by running requests, as of the latest look at them
        self._floor = 0  # to which a newcomer is lifted, before the credit is subtracted
        self._last = 0  # counter of the tenant that left the queue last

    # --- counting ---

    def lane(self, request: Request) -> str:
        """The tenant's: one lane each."""
        return request.tenant

    def on_add(self, request: Request, waiting: WaitingQueue) -> None:
        """Count the request as its tenant's; a tenant without waiting ones is lifted to the floor, less the credit."""
        tenant = request.tenant
        heads = waiting.heads()
        if tenant not in heads:
            # The floor never falls: else each newcomer, a credit below the last one, would pull the next one further down.
            self._floor = max(self._floor, min((self.counters[other] for other in heads), default=self._last))
            least = self._floor - self._credit
            self.counters[tenant] = max(self.counters.get(tenant, least), least)
        self._open[tenant] += 1

    def on_finish(self, request: Request) -> None:
        """Count it off; tenants without open requests are forgotten once there are too many."""
        self._open[request.tenant] -= 1
        if not self._open[request.tenant]:
            del self._open[request.tenant]
            if len(self.counters) > 2 * MAX_TENANTS + len(self._open):
                self._forget()

    def _forget(self) -> None:
        """Drop the tenants that are gone and were served least: a lift gives them back all but `credit`."""
        gone = sorted((self.counters[tenant], tenant) for tenant in self.counters.keys() - self._open.keys())
        for _, tenant in gone[:-MAX_TENANTS]:
            del self.counters[tenant]

    def on_dequeue(self, request: Request) -> None:
        """Keep the tenant's counter: newcomers to an empty queue are lifted to it."""
        super().on_dequeue(request)
        self._last = self.counters[request.tenant]

    def on_tokens(self, request: Request, begin: int, end: int) -> None:
        """Charge the tenant, by its weight: a prompt's tokens at 1, generated ones at the cost of a decode. What an idle request
        gets is taken from nobody."""
        if request.idle:
            return
        prompt, tenant = len(request.prompt_ids), request.tenant
        self.counters[tenant] += max(0, min(end, prompt) - begin) * self._cost_of(request)
        self.counters[tenant] += max(0, end - max(begin, prompt)) * self._cost_of(request, self._cost.decode)

    def on_step(self, step: Step, result: StepResult) -> None:
        """Refine the cost of a generated token. Tenants pay for those they get, so the time that rejected drafts take is shared
        out among these: computed positions make a token dearer, they are not paid for."""
        if not self._cost.measures:
            return
        prompt = generated = 0
        for chunk, brought in zip(step.chunks, result.results, strict=True):
            if chunk.phase is ChunkPhase.DECODE:
                generated += len(brought.token_ids)
            else:
                prompt += chunk.length
        self._cost.observe(prompt, generated, result.seconds)

    def _cost_of(self, request: Request, of: float = 1.0) -> int:
        """The cost of one token, in units of the counter of the request's tenant."""
        return round(of * UNIT / self._weights.get(request.tenant, request.weight))

    # --- comparing ---

    def admission_order(self, waiting: WaitingQueue, running: Collection[Request], warm: Warm) -> Iterator[Request]:
        """Merges the lanes: the next request is always one of the tenant that has least, pledges included."""
        pledged = self._pledged = Counter[str]()
        for request in running:
            self._pledge(pledged, request)
        heads = waiting.heads()
        heap = [self._entry(request, pledged) for request in heads.values()]
        heapq.heapify(heap)
        lanes: dict[str, Iterator[Request]] = {}
        while heap:
            *_, tenant = heapq.heappop(heap)
            if tenant not in lanes:  # lanes far from their turn are not examined
                lanes[tenant] = waiting.admission_order(tenant, warm)
                heads[tenant] = next(lanes[tenant])
            request = heads[tenant]
            yield request
            if request.block_table:  # it was admitted
                self._pledge(pledged, request)
            following = next(lanes[tenant], None)
            if following is not None:
                heads[tenant] = following
                heapq.heappush(heap, self._entry(following, pledged))

    def _entry(self, request: Request, pledged: Mapping[str, int]) -> tuple[int, int, int, str]:
        counter = self.counters[request.tenant] + pledged[request.tenant]
        return request.priority, counter, request.arrival, request.tenant

    def _pledge(self, pledged: Counter[str], request: Request) -> None:
        """Add what the request's prompt will still cost."""
        left = len(request.prompt_ids) - max(request.computed, request.high_water)
        if left > 0 and not request.idle:
            pledged[request.tenant] += left * self._cost_of(request)

    def rank(self, request: Request) -> Rank:
        """By priority, then the tenant that was served least."""
        return request.priority, self.counters[request.tenant]

    def deferred(self, ready: Collection[Request], prompts: Iterable[Request]) -> tuple[set[int], int]:
        """Decodes of tenants ahead of one with a prompt to compute, by more than the margin."""
        ahead = set[int]()
        tokens = 0
        for prompt in prompts:
            limit = self.counters[prompt.tenant] + self._margin
            after = [r.arrival for r in ready if r.priority >= prompt.priority and self.counters[r.tenant] > limit]
            ahead.update(after)
            tokens += prompt.remaining if after else 0
        return ahead, tokens

    def is_preemptible(self, running: Request, newcomer: Request, lost: int) -> bool:
        """Those of a lower class are; within one, less urgent ones of the newcomer's tenant, and those of a tenant that is ahead by
        more than margin, newcomer's pledges and lost work."""
        if running.priority != newcomer.priority:
            return running.priority > newcomer.priority
        if running.tenant == newcomer.tenant:
            return yields(running, newcomer) > 0
        has = self.counters[newcomer.tenant] + self._pledged[newcomer.tenant]
        return has + self._margin + lost * self._cost_of(running) < self.counters[running.tenant]

    def preemption_rank(self, request: Request, needy: Request) -> Rank:
        """A lower class first, then tenants ahead of the needy one's by more than the margin, then its own less urgent ones."""
        ahead = self.counters[request.tenant] > self.counters[needy.tenant] + self._margin
        return request.priority, int(ahead), yields(request, needy)

    def is_stable(self, waiting: WaitingQueue, running: Collection[Request]) -> bool:
        """Counters change with every step, so only while they decide nothing."""
        return not waiting or (len(self._open) == 1 and super().is_stable(waiting, running))
