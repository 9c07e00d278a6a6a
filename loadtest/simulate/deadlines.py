"""A deadline for every simulated request: who is refused at once, and what became of the promises made to the others."""

from collections import Counter

from loadtest.report.records import ErrorClass, RequestRecord
from scheduler.router.deadlines import Deadline, Outcome, Promise, PromiseProgress, Promises
from scheduler.router.view import ReplicaView


class DeadlineGate:
    """Quotes as a server does, and learns from what came of it.

    Args:
        deadline: of every request.

    Attributes:
        outcomes: of the requests that have ended, or were refused.
    """

    def __init__(self, deadline: Deadline) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self._deadline = deadline
        self._promises = Promises()
        self._open: list[tuple[RequestRecord, Promise]] = []

    def accepts(
        self,
        record: RequestRecord,
        prefill: ReplicaView,
        decode: ReplicaView,
        now: float,
        *,
        hand_over_seconds: float = 0.0,
    ) -> bool:
        """Whether a request is accepted; if not, its record says so. For the replicas see `Promises.quote`."""
        self.settle()
        quote = self._promises.quote(
            self._deadline,
            prefill,
            decode,
            record.asked_output,
            hand_over_seconds=hand_over_seconds,
            waited=now - record.intended,
        )
        if self._deadline.allows(quote):
            self._open.append((record, self._promises.promise(self._deadline, quote)))
            return True
        self.outcomes[Outcome.REFUSED] += 1
        record.error, record.status = ErrorClass.STATUS, 429
        record.detail = f"expected after {quote:.3f} s, needed after {self._deadline.seconds:g} s"
        return False

    def settle(self) -> None:
        """Look at those that have ended since the last call."""
        still: list[tuple[RequestRecord, Promise]] = []
        for record, promise in self._open:
            if record.finished is None and record.error is None:
                still.append((record, promise))
            else:
                progress = PromiseProgress(first_token=record.ttft, complete=record.e2e, over=record.e2e or 0.0)
                self.outcomes[promise.ended(progress)] += 1
        self._open = still

    def __str__(self) -> str:
        kept, broken = self.outcomes[Outcome.KEPT], self.outcomes[Outcome.BROKEN]
        share = f"{kept / (kept + broken):.2%}" if kept + broken else "none"
        return f"deadlines: {self.outcomes[Outcome.REFUSED]} refused at once, {kept + broken} promised, {share} of these kept"
