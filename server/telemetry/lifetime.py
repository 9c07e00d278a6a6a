"""One `Lifetime` per sequence: timestamps of its way through the server, and the only source of what is reported about it.

Metrics, the access log, `usage` and `timings` all read it; nothing else measures a request.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from scheduler.router.deadlines import Outcome, Promise, PromiseProgress
from scheduler.types.messages import FinishReason, RequestTimes
from scheduler.types.trail import Trail


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRun:
    """What one engine says of a sequence that it had until it ended, or was handed over."""

    engine: str
    times: RequestTimes
    trail: Trail


@dataclass(slots=True, kw_only=True)
class Lifetime:
    """Timestamps are `time.monotonic()` seconds, None until they happen.

    `queued` and `scheduled` are the engine's, the others are taken in the HTTP process: `first_token` and `last_token`
    when a token arrives here, however fast the client reads. `completion_tokens` counts the tokens handed to the reader
    of the stream, so that a stop string leaves the same count whatever the engine had computed ahead. `reason` is set
    once: whoever ends a sequence on purpose (a stop string) sets it before closing the stream.

    A sequence that another engine goes on with has one lifetime all the same: `queued`, `scheduled` and `cached_tokens` are of the
    engine that brought the first token, `preemptions` are those of all. `runs` has one entry for each engine that told of its end;
    one that died did not. `output_ids`: all tokens that have arrived, whether or not they were read.
    """

    counted: ClassVar[bool] = True  # in the figures of requests, and for its tenant
    timed: ClassVar[bool] = True  # in the figures of how long requests take
    received: float
    validated: float | None = None
    queued: float | None = None
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    finished: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0  # of those generated, once the sequence has ended
    drafts_accepted: int = 0  # tokens that were guessed ahead and right
    drafts_rejected: int = 0
    preemptions: int = 0
    reason: FinishReason | None = None
    failed: bool = False  # an engine or the server ended it before it was complete
    promise: Promise | None = None  # that it will meet a deadline
    replays: int = 0  # engines that went on with it after the one before had ended
    runs: list[EngineRun] = field(default_factory=list)
    output_ids: list[int] = field(default_factory=list)
    _earlier_preemptions: int = 0
    _earlier_drafts: tuple[int, int] = (0, 0)
    _begun: bool = False  # an earlier engine brought the first token

    def absorb(self, times: RequestTimes, trail: Trail | None = None, engine: str = "") -> None:
        """Take over the engine's timestamps and counts, and at the end what it wrote down."""
        if trail is not None:
            self.runs.append(EngineRun(engine=engine, times=times, trail=trail))
        if not self._begun:
            self.queued, self.scheduled, self.cached_tokens = times.queued, times.scheduled, times.cached_tokens
        self.preemptions = self._earlier_preemptions + times.preemptions
        self.drafts_accepted = self._earlier_drafts[0] + times.drafts_accepted
        self.drafts_rejected = self._earlier_drafts[1] + times.drafts_rejected

    def replayed(self) -> None:
        """The engine ended; what follows is another's."""
        self.replays += 1
        self.handed_over()

    def handed_over(self) -> None:
        """What follows is another engine's."""
        self._earlier_preemptions, self._begun = self.preemptions, self.first_token is not None
        self._earlier_drafts = self.drafts_accepted, self.drafts_rejected

    def token_arrived(self, now: float) -> float | None:
        """Record that tokens arrived now; seconds since the ones before, None for the first."""
        previous, self.last_token = self.last_token, now
        if previous is None:
            self.first_token = now
            return None
        return now - previous

    def end(self, reason: FinishReason, now: float) -> None:
        """Record the end. The first reason stays."""
        if self.finished is None:
            self.finished = now
        if self.reason is None:
            self.reason = reason

    def promise_kept(self) -> Outcome | None:
        """What became of the promise, if there was one; to be asked once, at the end."""
        if self.promise is None:
            return None
        over = (self.received if self.finished is None else self.finished) - self.received
        progress = PromiseProgress(
            first_token=None if self.first_token is None else self.first_token - self.received,
            complete=over if self.reason in (FinishReason.STOP, FinishReason.LENGTH) else None,
            over=over,
            failed=self.failed or self.reason is FinishReason.ERROR,
            disturbed=self.replays > 0,
        )
        return self.promise.ended(progress)

    def waits(self) -> dict[str, float]:
        """Two parts of `queue_ms` for the access log, in milliseconds; the rest is the way to the engine.

        `validation_ms`: reading, checking and tokenizing the request. `waiting_ms`: in the engine's queue.
        """
        return {
            "validation_ms": _ms(self.received, self.validated),
            "waiting_ms": _ms(self.queued, self.scheduled),
        }

    def timings(self) -> dict[str, float]:
        """The response's `timings`: milliseconds, and tokens per second where both ends are known.

        `queue_ms` from received to scheduled, `prefill_ms` to the first token (to the end, if there was none), `decode_ms` to the
        last, `total_ms` from received to the end (or to the last token while the sequence is open).
        """
        end = self.finished or self.last_token
        prefilled = self.finished if self.first_token is None else self.first_token
        parts = {
            "queue_ms": _ms(self.received, self.scheduled),
            "prefill_ms": _ms(self.scheduled, prefilled),
            "decode_ms": _ms(self.first_token, self.last_token),
            "total_ms": _ms(self.received, end),
        }
        computed = self.prompt_tokens - self.cached_tokens
        if parts["prefill_ms"] > 0 and computed > 0:
            parts["prefill_tokens_per_second"] = round(1000 * computed / parts["prefill_ms"], 3)
        if parts["decode_ms"] > 0 and self.completion_tokens > 1:
            parts["decode_tokens_per_second"] = round(1000 * (self.completion_tokens - 1) / parts["decode_ms"], 3)
        return parts


class IdleLifetime(Lifetime):
    """Of a sequence for which nobody waits: its tokens count, and its times say nothing about the server."""

    timed = False

    def token_arrived(self, now: float) -> None:
        """As for any sequence, but the gap is nobody's."""
        super().token_arrived(now)


def _ms(start: float | None, end: float | None) -> float:
    return 0.0 if start is None or end is None else round(1000 * max(0.0, end - start), 3)


class Charge(Protocol):
    """What a job is charged for."""

    def settle(self) -> None:
        """Nothing of the job is computed any more: charge what was, and nothing else."""


class Meter(Protocol):
    """Whoever counts what a request uses."""

    def charge(self, model: str, sequences: Sequence[tuple[int, int]], lifetimes: Sequence[Lifetime]) -> Charge:
        """Charge a job that is about to be submitted: prompt tokens of each sequence (0 for a further choice of a prompt) and most
        tokens that it generates. `lifetimes` fills as they are submitted.

        Raises:
            RateLimited: there is no room for it in a limit.
        """


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One HTTP request and the sequences it opened. Made by the outermost middleware, found at `request.state.exchange`."""

    remembered: ClassVar[bool] = True  # by what has room for the latest, for those who ask later
    request_id: str
    received: float
    # What its endpoint does, in the words of OpenTelemetry's conventions; empty: it generates nothing.
    operation: str = ""
    session: str | None = None  # what the client calls the conversation to which it belongs
    trace_id: str = ""  # in hexadecimal digits; empty: it is not traced
    read: float | None = None  # when its whole body was there
    validated: float | None = None  # from then on it can only be refused for lack of room in the queue
    answered: float | None = None  # when the head of the answer was sent
    sent: int = 0  # bytes of the answer's body
    lifetimes: list[Lifetime] = field(default_factory=list)
    error_code: str | None = None  # code of the `ApiError` that the client got, in the answer or within the stream
    error_param: str | None = None  # its request field, if it has one
    stream: str | None = None  # id of the resumable stream that it began or went on with
    meter: Meter | None = None  # where its key has an account
    job: str = ""  # id of the answer, once its sequences were submitted
    model: str = ""  # the name that the answer carries
    attributes: Callable[[], dict[str, Any]] | None = None  # what it asked for, as its span says it; where it is traced
    blocks: Callable[[], dict[str, object]] | None = None  # hashes of its prompt, where the access log has them
    # Prompts and answers, where the operator wants them to be told.
    content: Callable[[], dict[str, object]] | None = None

    def begin(self, prompt_tokens: int) -> Lifetime:
        """A new sequence of this request."""
        lifetime = Lifetime(received=self.received, validated=self.validated, prompt_tokens=prompt_tokens)
        self.lifetimes.append(lifetime)
        return lifetime


class IdleExchange(Exchange):
    """What a request without a connection opened, for which nobody waits. It pushes nothing out of any memory."""

    remembered = False

    def begin(self, prompt_tokens: int) -> Lifetime:
        """A new sequence of this request."""
        lifetime = IdleLifetime(received=self.received, validated=self.validated, prompt_tokens=prompt_tokens)
        self.lifetimes.append(lifetime)
        return lifetime
