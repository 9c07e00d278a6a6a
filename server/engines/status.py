"""How an engine is doing, and why it takes no requests if it takes none.

What belongs here: what is known of its state, and what changes that. Never: its open sequences, its process.
"""

import logging
import math
import time
from collections.abc import Callable
from typing import Literal

from configs.settings import Settings
from scheduler.types.messages import EngineStats, Ready, StartPhase
from server.engines.health import EngineHealth, Liveness
from server.errors import Unavailable, for_clients
from server.telemetry.metrics import EngineMetrics

State = Literal["starting", "ready", "dead", "stopped"]

_log = logging.getLogger("headrace.engine")


class EngineStatus:
    """One engine's, over all its incarnations. All calls belong to the event loop's thread.

    Args:
        name: the engine's.
        settings: the server's.
        metrics: the engine's; told when it begins to hang, and when it no longer does.
        on_change: called when it may have become usable, or will never be again.

    Attributes:
        state: "starting" until the engine is ready and again while it is restarted, "dead" once restarting has been given up,
            "stopped" when the server stops.
        info: what the present incarnation said when it became ready; while it starts, what the one before said.
        stats: the present incarnation's latest report.
        phases: of its start that have ended.
        failure: why the last incarnation ended; None while one is ready.
        last_token: monotonic stamp of the newest token of any sequence.
        liveness: whether it is heard of.
    """

    def __init__(
        self, name: str, settings: Settings, metrics: EngineMetrics, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self.state: State = "starting"
        self.info: Ready | None = None
        self.stats = EngineStats()
        self.phases: list[StartPhase] = []
        self.failure: str | None = None
        self.last_token = -math.inf
        self.liveness = Liveness(settings.hang_seconds)
        self._name = name
        self._health_seconds = settings.health_seconds
        self._metrics = metrics
        self._on_change = on_change
        self._draining = False
        self._hang: str | None = None  # what hangs, as the log and the metrics were told
        self._given_up = "it does not start"  # why, once it is "dead"
        self._began: float | None = None  # monotonic stamp of the present incarnation's start
        self._start_seconds = 5.0  # how long the last start took; a first guess until one has been seen

    # --- what is known ---

    @property
    def computes(self) -> str | None:
        """Everything besides the request on which its answers depend; None if it was never ready, so that it is not known."""
        return self.info.computes if self.info is not None else None

    @property
    def hang(self) -> str | None:
        """What hangs, as the end of a sentence about the engine; None if nothing does, or it is not ready."""
        return self.liveness.hang(0.0, self._health_seconds) if self.state == "ready" else None

    @property
    def working(self) -> bool:
        """Whether it could take requests: it is ready, and nothing hangs."""
        return self.state == "ready" and self.hang is None

    @property
    def draining(self) -> bool:
        """Whether somebody has asked to leave it alone: it takes no new requests then, whatever its state."""
        return self._draining

    @draining.setter
    def draining(self, value: bool) -> None:
        self._draining = value
        self._on_change()

    @property
    def usable(self) -> bool:
        """Whether it takes requests: it is working, and nobody has asked to leave it alone."""
        return self.working and not self.draining

    def health(self) -> EngineHealth:
        """How it is doing now; nothing is asked of the engine. One that is drained is in good health."""
        trouble = None if self.working else self.unavailable().message
        if trouble is not None and self.failure is not None and self.state != "dead":
            trouble += f" The last engine ended: {for_clients(self.failure)}."
        age = round(time.monotonic() - self.last_token, 3)
        return EngineHealth(trouble, self.liveness.doing, self.stats.steps, age)

    def unavailable(self) -> Unavailable:
        """Why no request is taken now, with Retry-After; for callers that look at `usable` themselves."""
        if (hang := self.hang) is not None:
            return Unavailable(f"The engine hangs: it {hang}.", headers={"Retry-After": "5"})
        if self.state == "dead":
            why = f"The engine was given up, as {self._given_up}: {for_clients(str(self.failure))}"
            return Unavailable(why, headers={"Retry-After": "60"})
        if self.state == "stopped":
            return Unavailable("The server is shutting down.", headers={"Retry-After": "5"})
        if self.state == "ready":
            return Unavailable("The engine is drained and takes no new requests.", headers={"Retry-After": "5"})
        done = f" ({self.phases[-1].name} done)" if self.phases else ""
        elapsed = time.monotonic() - self._began if self._began is not None else 0.0
        retry = max(1, math.ceil(self._start_seconds - elapsed))
        return Unavailable(f"The engine is starting{done}.", headers={"Retry-After": str(retry)})

    def ensure_usable(self) -> None:
        """Refuse what would be asked of it now.

        Raises:
            Unavailable: the engine is not ready, hangs or is drained.
        """
        if not self.usable:
            raise self.unavailable()

    # --- what happens ---

    def begun(self, began: float) -> None:
        """An incarnation was started, at this monotonic stamp."""
        self.state = "starting"
        self.phases = []
        self.stats = EngineStats()
        self.liveness.restarted()
        self._hang, self._began = None, began

    def became_ready(self, info: Ready, now: float) -> float:
        """The incarnation takes requests. Returns how many seconds its start took."""
        self.info = info
        self.state = "ready"
        self.failure = None
        self.last_token = now  # Ready means that a real token was produced
        if self._began is not None:
            self._start_seconds = now - self._began
        self._on_change()
        return self._start_seconds

    def passed(self, seconds: float) -> None:
        """So much time went by in which events of a ready engine would have been heard. The log has a line when it begins to hang,
        and one when it no longer does."""
        self.liveness.passed(seconds)
        before, self._hang = self._hang, self.hang
        if (before is None) != (self._hang is None):
            self._metrics.answers(self._hang is None)
            if self._hang is None:
                _log.info("%s: no longer hangs", self._name)
                self._on_change()
            else:
                _log.warning("%s: hangs: it %s", self._name, self._hang)

    def ended(self, cause: str) -> None:
        """The incarnation ended; unless something else is said, another one follows."""
        self.failure = cause
        if self.state == "ready":
            self.state = "starting"
        self.stats = EngineStats()
        self._began = None

    def given_up(self, why: str) -> None:
        """No further incarnation will come, unless somebody asks for one; `why` goes on after "as"."""
        self.state, self._given_up = "dead", why
        self._on_change()

    def revived(self) -> None:
        """An incarnation will come after all."""
        self.state = "starting"

    def stopped(self) -> None:
        """The server is stopping: no further request is taken."""
        self.state, self._hang = "stopped", None
        self._on_change()
