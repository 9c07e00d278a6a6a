"""The incarnations of one engine, one after the other, as its client sees them.

What belongs here: the wire to the present one, what it says, what its beginning and its end mean for the client. When one is
started, and whether another follows, is decided in `server/engines/supervision/supervisor.py`.
"""

import time
from collections.abc import Callable

from scheduler.types.block_changes import BlockChanges
from scheduler.types.engine_map import EngineMap
from scheduler.types.messages import (
    Event,
    Failed,
    Heartbeat,
    Ready,
    SequencesStarted,
    Shutdown,
    StartPhase,
    StepOutputs,
    Stopping,
)
from server.engines.client import EngineClient
from server.engines.process import RunningProcess
from server.engines.wire import EngineWire
from server.telemetry.metrics import Metrics


class Incarnations:
    """One for the life of the server. All calls belong to the event loop's thread.

    Args:
        client: told what happens.
        metrics: the server's.
        on_event: called with the engine's name and each event that is neither frequent nor of one sequence.

    Attributes:
        client: as above.
        last_words: what the present incarnation said of its own failure.
    """

    def __init__(
        self, client: EngineClient, metrics: Metrics, on_event: Callable[[str, Event], None] = lambda name, event: None
    ) -> None:
        self.client = client
        self.last_words: str | None = None
        self._metrics = metrics.engine(client.name)
        self._on_event = on_event
        self._process: RunningProcess | None = None

    # --- the present one ---

    def attach(self, process: RunningProcess, wire: EngineWire, on_broken: Callable[[str], None]) -> None:
        """A new incarnation was started; the wire to it belongs to the client until `disconnect`.

        Args:
            process: the incarnation's process.
            wire: the wire to it.
            on_broken: called with the reason when the incarnation's events cannot be handled.
        """
        self._process, self.client.wire = process, wire
        self.last_words = None
        self.client.status.begun(process.started)
        self._metrics.attached(process.pid)
        wire.listen(self.client.name, self.handle, on_broken)

    def handle(self, event: Event) -> None:
        """Absorb one event."""
        now, client = time.monotonic(), self.client
        client.status.liveness.heard(event)
        match event:
            case StepOutputs():
                client.step_ended(event, now)
                return
            case Heartbeat() | Stopping():
                return
            case BlockChanges() | EngineMap():
                client.published.heard(event)
                return
            case SequencesStarted():
                client.sequences_started(event.request_ids)
                return
            case Ready():
                self._become_ready(event, now)
            case StartPhase():
                client.status.phases.append(event)
                self._metrics.phase_ended(event)
            case Failed():
                self.last_words = event.error
        self._on_event(client.name, event)

    def _become_ready(self, event: Ready, now: float) -> None:
        client = self.client
        client.engine_ready(event)
        if self._process is not None and client.wire is not None:
            client.wire.once_connected(self._process.remove_endpoints)
        seconds = client.status.became_ready(event, now)
        self._metrics.ready(event, seconds)

    def shut_down(self, flush_seconds: float | None) -> None:
        """Ask it to exit, after it has written KV that would be lost with it for at most so long (None: not at all)."""
        self.client.send(Shutdown(reason="the server stops", flush_seconds=flush_seconds))

    def disconnect(self) -> None:
        """Close the wire: nothing more is received or sent."""
        if self.client.wire is not None:
            self.client.wire.close()
        self._process = self.client.wire = None

    def detach(self, cause: str) -> None:
        """It ended: another engine, or the next incarnation, goes on with every open sequence."""
        self.client.status.ended(cause)
        self._metrics.detached()
        self.client.engine_ended()

    # --- the next one ---

    def restarting(self) -> None:
        """It will follow."""
        self._metrics.restarted()

    def give_up(self, why: str = "it does not start") -> None:
        """It will not come, unless somebody asks for it; `why` goes on after "as"."""
        self.client.status.given_up(why)

    def revived(self) -> None:
        """It will come after all."""
        self.client.status.revived()
        self._metrics.restarted()

    def stopped(self) -> None:
        """It will not come, as the server is stopping: no further request is taken, and open ones fail."""
        self.client.status.stopped()
        self.client.fail_all()
