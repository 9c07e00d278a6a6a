"""Role switching in simulated time: the object that a server has, shown what a server would show it."""

from collections.abc import Sequence

from loadtest.report.records import RequestRecord
from loadtest.simulate.replica import Replica
from scheduler.router.role_switching import RequestProgress, RoleSwitch, RoleSwitching

LOOK_SECONDS = 1.0


class RoleWatch:
    """Looks at the replicas, and gives them the roles that are due.

    Args:
        switching: decides.
        replicas: all there are.

    Attributes:
        switches: those that were made, each with its time in seconds.
    """

    def __init__(self, switching: RoleSwitching, replicas: Sequence[Replica]) -> None:
        self.switches: list[tuple[float, RoleSwitch]] = []
        self._switching = switching
        self._replicas = replicas
        self._open: list[RequestRecord] = []

    @property
    def busy(self) -> bool:
        """Whether there are requests that have not ended, as far as was looked."""
        return bool(self._open)

    def arrived(self, record: RequestRecord) -> None:
        """A request was sent."""
        self._open.append(record)

    def look(self, now: float) -> None:
        """Switch a role if it is due. The replicas have caught up with `now`."""
        ended = [record for record in self._open if record.finished is not None and record.finished <= now]
        for record in sorted(ended, key=lambda each: each.finished or 0.0):
            self._switching.ended(_progress(record), record.finished or 0.0)
        self._open = [record for record in self._open if record.error is None and (record.finished or now + 1) > now]
        switch = self._switching.look(self._replicas, map(_progress, self._open), now)
        if switch is not None:
            self._replicas[switch.engine].role = switch.after
            self.switches.append((now, switch))


def _progress(record: RequestRecord) -> RequestProgress:
    tokens = record.tokens
    first, last = (tokens[0][0], tokens[-1][0]) if tokens else (None, None)
    return RequestProgress(record.intended, first, last, len(tokens))
