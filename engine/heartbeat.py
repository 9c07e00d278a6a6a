"""The waits of the engine's loop: while it waits, the server hears every second that it lives, and what it waits for."""

import math
from collections.abc import Callable
from typing import Literal

from engine.ipc.channel import Channel
from scheduler.types.messages import HEARTBEAT_SECONDS, Heartbeat


class Patience:
    """Waits on the channel, and sends a `Heartbeat` whenever one is due.

    Args:
        channel: wakes us, and takes the heartbeats.
        clock: seconds, monotonic.
        interval: seconds between heartbeats.
    """

    def __init__(self, channel: Channel, clock: Callable[[], float], interval: float = HEARTBEAT_SECONDS) -> None:
        self._channel = channel
        self._clock = clock
        self._interval = interval
        self._due = clock() + interval
        self._awaited: tuple[str, int] = ("idle", 0)
        self._seconds = 0.0

    def wait(
        self, doing: Literal["idle", "step", "transfer"], number: int = 0, tokens: int = 0, seconds: float = math.inf
    ) -> None:
        """Sleep until a command or a wake-up comes or a heartbeat is due.

        Args:
            doing: what is waited for.
            number: tells one such wait from the next; as long as it stays the same, the seconds add up.
            tokens: of the step.
            seconds: the longest sleep.

        Raises:
            ParentGone: the HTTP process has ended.
        """
        if self._awaited != (doing, number):
            self._awaited, self._seconds = (doing, number), 0.0
        before = self._clock()
        self._channel.wait(min(seconds, max(0.0, self._due - before)))
        now = self._clock()
        # A longer sleep means that the process was stopped, not that it waited.
        self._seconds += min(now - before, 2 * self._interval)
        if now >= self._due:
            self._due = now + self._interval
            self._channel.send(Heartbeat(doing=doing, seconds=self._seconds, tokens=tokens))
