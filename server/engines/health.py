"""Is an engine alive? It is as long as its loop is heard of and its steps end. Nothing is generated to find out: asking costs no
seat, no KV block and no step, and a deep queue is not mistaken for a hang.

The loop says every second what it waits for (`Heartbeat`). So a process that is stopped, or blocked outside a step, is known by its
silence, and a step that hangs by a loop that waits for it for too long.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

from scheduler.types.messages import HEARTBEAT_SECONDS, Event, Heartbeat, StepOutputs, Stopping

SILENT_BEATS = 5  # heartbeats in a row whose absence means silence
OBEY_BEATS = 3  # who is told to stop says something at once, and who misses so many will not stop
_USUAL = 4  # times what its latest steps took for each token is what a step may take
_LATEST_STEPS = 32


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """The health of one engine, as `/health` tells it.

    Attributes:
        trouble: why it cannot be used now, or None.
        doing: what its loop waits for: "idle", "step" or "transfer".
        steps: ended since it started.
        last_token_seconds_ago: infinite before its first token.
    """

    trouble: str | None
    doing: Literal["idle", "step", "transfer"]
    steps: int
    last_token_seconds_ago: float


class Liveness:
    """What one incarnation of an engine lets know of itself. Time is passed in, as far as this process was awake to listen.

    How long a step may take grows with its tokens: a chunk of a prompt on a slow CPU takes as long as a hundred decoded tokens.
    The floor is the operator's (`health_seconds`, `hang_seconds`); above it, four times what its tokens have lately taken each, or
    `unmeasured` before any step has been seen. Four, because a token costs more the longer its context is.

    Args:
        unmeasured: seconds that a step may take before any has ended.
        heartbeat: seconds between heartbeats.
    """

    def __init__(self, unmeasured: float, heartbeat: float = HEARTBEAT_SECONDS) -> None:
        self._unmeasured = unmeasured
        self._heartbeat = heartbeat
        self.restarted()

    def restarted(self) -> None:
        """Another incarnation begins."""
        self.doing: Literal["idle", "step", "transfer"] = "idle"
        self.silence = 0.0
        self.stops = False  # it has said that it obeys
        self._waits: Heartbeat | None = None  # for a step or a transfer, as far as that has not ended
        self._steps: deque[tuple[float, int]] = deque(maxlen=_LATEST_STEPS)  # seconds and tokens

    def heard(self, event: Event) -> None:
        """The engine sent something."""
        self.silence = 0.0
        match event:
            case Heartbeat():
                self.doing = event.doing
                self._waits = None if event.doing == "idle" else event
            case StepOutputs(step_tokens=tokens) if tokens:
                self.doing, self._waits = "step", None
                self._steps.append((event.step_seconds, tokens))
            case Stopping():
                self.stops = True
            case _:
                pass

    def passed(self, seconds: float) -> None:
        """So much time went by in which this process would have heard it."""
        self.silence += seconds

    def missed(self, beats: int) -> bool:
        """Whether so many heartbeats in a row did not come."""
        return self.silence > beats * self._heartbeat

    def hang(self, silence: float, step: float) -> str | None:
        """What hangs, as the end of a sentence about the engine; None if nothing does, or it stops: it was given a time for that.

        Args:
            silence: seconds for which the loop may be silent, but never less than `SILENT_BEATS` heartbeats.
            step: seconds that any step, and any transfer that all wait for, may take.
        """
        if self.stops:
            return None
        if self.silence > max(silence, SILENT_BEATS * self._heartbeat):
            return f"has said nothing for {math.floor(self.silence)} s"
        waits = self._waits
        if waits is None or waits.seconds <= max(step, self._usual(waits)):
            return None
        what = f"a step of {waits.tokens} tokens" if waits.doing == "step" else "a transfer between KV tiers"
        return f"has waited for {math.floor(waits.seconds)} s for {what}"

    def _usual(self, waits: Heartbeat) -> float:
        if waits.doing != "step":
            return 0.0
        if not self._steps:
            return self._unmeasured
        seconds, tokens = sum(step[0] for step in self._steps), sum(step[1] for step in self._steps)
        return _USUAL * waits.tokens * seconds / tokens
