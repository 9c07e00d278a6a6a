"""What idle requests get of a step: those that run on what nobody else needs, such as the lines of batches.

An idle request comes after all others wherever requests are compared, because its priority is beyond theirs; it never ages, is
admitted only while nobody else waits, and is preempted for whoever lacks its place or its blocks. That is not enough for others
not to feel it: who arrives waits for the step that is under way, and a step of many idle tokens is a long one. So

    alone               idle requests have at most `tokens` of a step, and no more of them run than that
    beside decodes      a quarter of that, since every gap between two tokens of the others grows by it
    beside prompts      nothing: prompts use all there is, and the first token is what their clients wait for

What belongs here: how many tokens. Never: which request gets them.
"""

from collections.abc import Iterable

from scheduler.request_table import RequestTable
from scheduler.types.request import Request
from scheduler.types.step import Chunk, ChunkPhase, Step

_BESIDE_DECODES = 4  # one in so many of its tokens is left to an idle share


class IdleShare:
    """The share of one scheduler's steps.

    Args:
        tokens: most that idle requests have of a step.
        table: the requests.
    """

    def __init__(self, tokens: int, table: RequestTable) -> None:
        self.tokens = tokens
        self._table = table

    def decodes(
        self,
        chosen: list[Request],
        prompts: Iterable[Request],
        step: Step | None = None,
        beside: Iterable[Request] = (),
    ) -> list[Request]:
        """The decodes of a step without the idle ones that are too many; those that have not run for longest go first.

        Args:
            chosen: by priority, so that idle ones come last.
            prompts: other running requests.
            step: as far as it is planned.
            beside: further ones that will decode in it.
        """
        if not chosen or not chosen[-1].idle:
            return chosen
        others = [request for request in chosen if not request.idle]
        idle = chosen[len(others) :]
        if any(not r.idle and r.prefilling and r.wants_step and not r.loading for r in prompts):
            return others
        used, decoding = self._planned(step)
        held = [request for request in beside if request.idle]
        room = self._room(bool(others) or decoding or len(held) < len(list(beside))) - used - len(held)
        if len(idle) > room:
            turns = sorted(idle, key=lambda request: (request.last_step, request.arrival))[: max(0, room)]
            idle = [request for request in idle if request in turns]
        return others + idle

    def left(self, step: Step, beside: Iterable[Request] = ()) -> int:
        """Tokens that further idle requests may have of a step as it is planned so far; `beside`: others that will decode in it."""
        if not self._table.idle_open or any(self._computes_prompt(chunk) for chunk in step.chunks):
            return 0
        used, decoding = self._planned(step)
        held = [request.idle for request in beside]
        return max(0, self._room(decoding or not all(held)) - used - sum(held))

    def _planned(self, step: Step | None) -> tuple[int, bool]:
        """Tokens of idle requests in a step, and whether others decode in it."""
        if step is None:
            return 0, False
        idle = [chunk for chunk in step.chunks if self._is_idle(chunk)]
        used = sum(chunk.length for chunk in idle)
        return used, step.tokens > used

    def _is_idle(self, chunk: Chunk) -> bool:
        request = self._table.running.get(chunk.request_id)
        return request is not None and request.idle

    def _computes_prompt(self, chunk: Chunk) -> bool:
        return chunk.phase is ChunkPhase.PREFILL and not self._is_idle(chunk)

    def full(self, more: int) -> bool:
        """Whether as many idle requests run, with so many more, as a step has tokens for."""
        return self._table.idle_running + more >= self.tokens

    def _room(self, beside: bool) -> int:
        return max(1, self.tokens // _BESIDE_DECODES) if beside else self.tokens
