"""Lets replicas die and come back, and finds others that go on with what was open there, as a server does.

Each open request, with its answer so far, goes at once to the replica that the router chooses for it, whatever its role; what is
not in a cache there is computed again. While no replica is available requests wait for one. A request that was computed in two
deaths is given to no third replica (`server/engines/replay.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from loadtest.report.records import ErrorClass, RequestRecord
from loadtest.simulate.faults.failure import NOTICED, Failure
from loadtest.simulate.keepers.keepers import PoolKeepers
from loadtest.simulate.open_request import OpenRequest
from loadtest.simulate.replica import Replica
from loadtest.simulate.timeline import Timeline

_DEATHS = 2  # of replicas that computed the same request, after which it is ended


class Outages:
    """Of one pool.

    Args:
        failures: that happen.
        nodes: the node of each replica.
        replicas: all there are.
        keepers: if there are any.
        timeline: on which they happen.
        go_on: sends a request to a replica, at a time. Returns whether there was one.

    Attributes:
        failures: as above.
        replayed: the requests with which others went on.
        recomputed: tokens of prompts and answers that had been computed and were computed again.

    Raises:
        ValueError: what is to die does not exist.
    """

    def __init__(
        self,
        failures: Sequence[Failure],
        nodes: Sequence[int],
        replicas: Sequence[Replica],
        *,
        keepers: PoolKeepers | None,
        timeline: Timeline,
        go_on: Callable[[OpenRequest, float], bool],
    ) -> None:
        self.failures = failures
        self.replayed: dict[int, RequestRecord] = {}
        self.recomputed = 0
        self._replicas = replicas
        self._keepers = keepers
        self._timeline = timeline
        self._go_on = go_on
        self._waiting: list[OpenRequest] = []
        for failure in failures:
            hit = failure.replicas(nodes)
            if not hit:
                many = len(replicas) if failure.kind == "replica" else max(nodes) + 1
                raise ValueError(f"{failure.kind} {failure.number} cannot fail: there are {many}, counted from 0")
            timeline.at(failure.at, partial(self._fail, failure, [replicas[index] for index in hit]))

    def _fail(self, failure: Failure, hit: Sequence[Replica], now: float) -> None:
        dead = [replica for replica in hit if replica.alive]
        for replica in dead:
            replica.die(now)
        if failure.kind == "node" and self._keepers is not None:
            self._keepers.lose(failure.number)
        self._timeline.at(now + NOTICED[failure.kind], partial(self._notice, dead))
        if failure.recovery is not None:
            self._timeline.at(now + failure.recovery, partial(self._recover, dead))

    def _notice(self, dead: Sequence[Replica], now: float) -> None:
        orphans = [orphan for replica in dead for orphan in replica.orphans()]
        for orphan in orphans:
            record = orphan.record
            if orphan.deaths >= _DEATHS:
                record.error, record.detail = ErrorClass.STREAM, f"{_DEATHS} replicas died while they computed it"
                continue
            self.replayed[record.index] = record
            answered = [orphan.text.token] * len(record.tokens)
            message = replace(orphan.message, generated_ids=answered, hand_over=False)
            anew = self._computed_again if answered else lambda _: None
            self._waiting.append(replace(orphan, message=message, given=None, anew=anew))
        self._find(now)

    def _recover(self, dead: Sequence[Replica], now: float) -> None:
        for replica in dead:
            replica.revive()
        self._find(now)

    def _find(self, now: float) -> None:
        waiting, self._waiting = self._waiting, []
        self._waiting = [request for request in waiting if not self._go_on(request, now)]

    def _computed_again(self, tokens: int) -> None:
        self.recomputed += tokens

    def settle(self) -> None:
        """The run has ended: nobody goes on with what still waits."""
        for request in self._waiting:
            request.record.error, request.record.detail = ErrorClass.STREAM, "no replica went on with it"
