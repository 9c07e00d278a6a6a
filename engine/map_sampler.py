"""Draws what the engine does while somebody watches; otherwise it does nothing."""

import math
from collections import deque
from collections.abc import Callable

from scheduler.scheduler import Scheduler
from scheduler.types.engine_map import MOST_PROMPTS, MOST_STEPS, EngineMap, MapStep, short_name
from scheduler.types.step import ChunkPhase, Step

INTERVAL_SECONDS = 0.25  # between two maps
MOST_SHARE = 0.02  # of the loop's time that drawing may take: large pools are drawn less often


class MapSampler:
    """Draws maps, not too many: only when something has changed, at most 4 a second, and in at most 2 % of the time.

    Args:
        scheduler: what is drawn.
        clock: seconds, monotonic.
    """

    def __init__(self, scheduler: Scheduler, clock: Callable[[], float]) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._steps: deque[MapStep] | None = None  # since the last map; None: nobody watches
        self._changed = False
        self._due = 0.0

    def publish(self, publish: bool) -> None:
        """From now on draw, beginning at once; or no longer."""
        self._steps = deque(maxlen=MOST_STEPS) if publish else None
        self._changed, self._due = publish, 0.0

    def changed(self) -> None:
        """There is something new to see."""
        self._changed = self._steps is not None

    def step_ended(self, step: Step, seconds: float) -> None:
        """A step brought its results."""
        if self._steps is None:
            return
        work = step.work()
        prompts = [chunk for chunk in step.chunks if chunk.phase is ChunkPhase.PREFILL][:MOST_PROMPTS]
        self._steps.append(
            MapStep(
                number=step.step_id,
                ended=self._clock(),
                seconds=seconds,
                prompt_tokens=work.prompt_tokens,
                decodes=work.decodes,
                prompts=[(short_name(chunk.request_id), chunk.start, chunk.length) for chunk in prompts],
            )
        )

    @property
    def wait(self) -> float:
        """Seconds until the next map is due; infinite if nobody watches, or nothing has changed."""
        return max(0.0, self._due - self._clock()) if self._changed else math.inf

    def take(self) -> EngineMap | None:
        """The next map, if it is due."""
        now = self._clock()
        if self._steps is None or not self._changed or now < self._due:
            return None
        drawn = self._scheduler.draw_map(now)
        drawn.steps = list(self._steps)
        self._steps.clear()
        self._changed = False
        self._due = now + max(INTERVAL_SECONDS, (self._clock() - now) / MOST_SHARE)
        return drawn
