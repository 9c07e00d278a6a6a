"""Writes down what becomes of each request (`Trail`), where it is decided, so that nobody has to guess afterwards why one was slow.

A step in which nothing but decodes happens writes nothing. Why the line does not move is written once for all who stand in it, and
again only when the reason changes; a request takes what concerns it when it starts.

What belongs here: writing. Never: deciding anything, reading what was written to decide.
"""

import heapq
from collections import deque
from collections.abc import Collection, Iterable

from scheduler.types.request import Request
from scheduler.types.step import ChunkPhase, Step, StepResult
from scheduler.types.trail import KvLoad, PromptChunk, TakenBack, Wait, WaitCause

_LINE = 256  # reasons for which the line stood that are kept
_MOST = 64  # entries of one list of a trail
_HOLDERS = 3


class Trails:
    """The writer of one scheduler. It is told the time once for each plan."""

    def __init__(self) -> None:
        self._now = 0.0
        self._recent = (0.0, 0.0)  # of the two plans before: a plan, and what it was brought up to date with
        self._line: deque[Wait] = deque(maxlen=_LINE)

    def planning(self, now: float) -> None:
        """A plan begins, or is brought up to date."""
        self._recent, self._now = (self._recent[1], self._now), now

    # --- the queue ---

    def line_stands(
        self, cause: WaitCause, running: Collection[Request], first: Request | None = None, lacking: int = 0
    ) -> None:
        """Nobody behind `first` can start in this plan, nor can it; None: nobody at all.

        Args:
            cause: why.
            running: the requests that run.
            first: the one for which there is no room.
            lacking: KV blocks that it lacks.
        """
        behind = "" if first is None else first.request_id
        if self._line and self._line[-1].cause is cause and self._line[-1].behind == behind:
            wait = self._line[-1]
            wait.until, wait.lacking = self._now, max(wait.lacking, lacking)
            return
        most = heapq.nlargest(_HOLDERS, running, key=lambda request: len(request.block_table)) if lacking else ()
        wait = Wait(cause=cause, since=self._now, until=self._now, behind=behind, lacking=lacking, running=len(running))
        wait.holders = [request.request_id for request in most]
        self._line.append(wait)

    def passed_over(self, request: Request, cause: WaitCause, behind: str = "") -> None:
        """The request waits for something of its own; others behind it may start."""
        waits = request.trail.waits
        last = waits[-1] if waits and waits[-1].since >= request.in_line_since else None
        if last is not None and last.cause is cause and last.behind == behind:
            last.until = self._now
        elif len(waits) < _MOST:
            waits.append(Wait(cause=cause, since=self._now, until=self._now, behind=behind))

    def all_passed_over(self, requests: Iterable[Request], cause: WaitCause) -> None:
        """`passed_over` each of them."""
        for request in requests:
            self.passed_over(request, cause)

    def waits_again(self, request: Request) -> None:
        """It stands in line again, for whatever reason."""
        request.in_line_since = self._now

    def started(self, request: Request, *, evicted: bool) -> None:
        """It leaves the queue. `evicted`: the first block that it missed had been there."""
        trail, since = request.trail, request.in_line_since
        if trail.preemptions and trail.preemptions[-1].resumed is None:
            trail.preemptions[-1].resumed = self._now
        if not request.started:
            trail.found_tokens, trail.evicted = request.computed, evicted
        own = [wait for wait in trail.waits if wait.until >= since]
        for wait in (*own[-1:], *list(self._line)[-1:]):
            if wait.until >= self._recent[0]:  # it was so when it was last looked at: until now
                wait.until = self._now
        parts = (_part(wait, since, own, request) for wait in self._line if wait.until > since)
        trail.waits += [part for part in parts if part.until > part.since][: _MOST - len(trail.waits)]
        trail.waits.sort(key=lambda wait: wait.since)

    # --- what it has while it runs ---

    def chunk(self, request: Request, step: Step, length: int) -> None:
        """`length` tokens of its prompt, from `computed` on, are planned for this step."""
        trail = request.trail
        if len(trail.chunks) >= _MOST:
            trail.more_chunks += 1
            return
        planned = PromptChunk(step=step.step_id, start=request.computed, tokens=length, planned=self._now)
        trail.chunks.append(planned)

    def step_ended(self, step: Step, result: StepResult, requests: dict[str, Request], now: float) -> None:
        """The step brought its results, which are not absorbed yet."""
        names = [chunk.request_id for chunk in step.chunks if chunk.phase is ChunkPhase.PREFILL]
        if not names:
            return
        tokens = step.tokens
        for request in (requests[name] for name in names if name in requests):
            for chunk in request.trail.chunks[-2:]:  # two steps may be open
                if chunk.step == step.step_id:
                    chunk.ended, chunk.step_tokens, chunk.step_seconds = now, tokens, result.seconds

    def preempted(self, request: Request, by: Request, *, lost: int, saved: bool) -> None:
        """It lost its blocks to `by`."""
        if len(request.trail.preemptions) < _MOST:
            entry = TakenBack(at=self._now, by=by.request_id, lost=lost, saved=saved)
            request.trail.preemptions.append(entry)

    def loads(self, request: Request, tiers: Iterable[str]) -> None:
        """It waits for blocks, from these tiers, one for each block."""
        named = list(tiers)
        if len(request.trail.loads) < _MOST:
            request.trail.loads.append(KvLoad(since=self._now, blocks=len(named), tiers=sorted(set(named))))

    def loaded(self, request: Request, now: float, *, whole: bool) -> None:
        """What it waited for has arrived, or as much of it as is left."""
        for load in request.trail.loads[-1:]:
            load.until, load.whole = now, whole


class NoTrails(Trails):
    """Writes nothing down: for simulations, in which nobody asks."""

    def line_stands(
        self, cause: WaitCause, running: Collection[Request], first: Request | None = None, lacking: int = 0
    ) -> None:
        """Nobody asks why."""

    def passed_over(self, request: Request, cause: WaitCause, behind: str = "") -> None:
        """Nobody asks for whom."""

    def all_passed_over(self, requests: Iterable[Request], cause: WaitCause) -> None:
        """Nobody asks for whom."""

    def started(self, request: Request, *, evicted: bool) -> None:
        """Nobody asks for how long it stood in line."""

    def chunk(self, request: Request, step: Step, length: int) -> None:
        """Nobody asks in how many pieces."""

    def step_ended(self, step: Step, result: StepResult, requests: dict[str, Request], now: float) -> None:
        """Nobody asks how long they took."""


def _part(wait: Wait, since: float, own: Iterable[Wait], request: Request) -> Wait:
    """A reason for which the line stood, as far as one who stood in it from `since` on had no reason of its `own`."""
    begin, end = max(wait.since, since), wait.until
    for other in own:
        if other.since <= begin:
            begin = max(begin, other.until)
        else:
            end = min(end, other.since)
    return Wait(
        cause=wait.cause,
        since=begin,
        until=end,
        behind="" if wait.behind == request.request_id else wait.behind,
        lacking=wait.lacking,
        running=wait.running,
        holders=wait.holders,
    )
