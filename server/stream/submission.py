"""The sequences of one job in the engine, whatever they produce: all are submitted or none, and they are closed together."""

from typing import Protocol, Self

from scheduler.types.messages import AddRequest, FinishReason, Output
from server.errors import GenerationFailed, Unavailable, for_clients
from server.stream.job import Job
from server.stream.output_stream import Attendant
from server.telemetry.lifetime import Exchange, Lifetime


class SequenceStream(Protocol):
    """The outputs of one sequence. It ends after the output with a finish reason, or raises `EngineDied` or `PoisonRequest`.

    `started`: whether the engine that has it has computed any of it.
    """

    started: bool

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Output: ...

    def attend(self, attendant: Attendant) -> None:
        """From now on offer outputs to this one, while the reader waits."""

    def close(self) -> None:
        """End now; what is still running in the engine is aborted."""


class Engine(Protocol):
    """As much of the engine client as a job needs."""

    def ensure_room(self, sequences: int) -> None:
        """Raise `QueueFull` or `Unavailable` unless this number of sequences would be taken now."""

    def submit(self, request: AddRequest, lifetime: Lifetime) -> SequenceStream:
        """Queue one sequence of those that `ensure_room` has let in. Raises `Unavailable`."""


class Submission:
    """The open sequences of one job. It must be closed, whatever happens.

    Attributes:
        job: what was submitted.
        streams: the outputs of each sequence, in the job's order.
        lifetimes: the lifetime of each sequence, in the same order.
    """

    def __init__(self, job: Job, engine: Engine, exchange: Exchange) -> None:
        """Submit all sequences, or none.

        Raises:
            QueueFull, Unavailable: the engine does not take them now.
            RateLimited: a limit of the key has no room for them.
        """
        self.job = job
        exchange.job, exchange.model = job.id, job.model
        self.streams: list[SequenceStream] = []
        self.lifetimes: list[Lifetime] = []
        meter = exchange.meter
        self._charge = None if meter is None else meter.charge(job.model, _sizes(job), self.lifetimes)
        try:
            engine.ensure_room(len(job.sequences))
            for sequence in job.sequences:
                lifetime = exchange.begin(len(sequence.prompt.ids))
                lifetime.promise = job.promise
                self.streams.append(engine.submit(sequence.request, lifetime))
                self.lifetimes.append(lifetime)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End what is still running; the engine aborts it and frees its blocks."""
        for stream in self.streams:
            stream.close()
        if self._charge is not None:
            self._charge.settle()


def _sizes(job: Job) -> list[tuple[int, int]]:
    """Prompt tokens of each sequence, 0 for a further choice of a prompt, and the most that it generates."""
    prompts = {id(sequence.prompt): index for index, sequence in reversed(list(enumerate(job.sequences)))}
    return [
        (
            len(sequence.prompt.ids) if prompts[id(sequence.prompt)] == index else 0,
            sequence.request.sampling.max_tokens,
        )
        for index, sequence in enumerate(job.sequences)
    ]


def raise_failure(output: Output) -> None:
    """Raise if the engine or the server ended the sequence before it was complete.

    Raises:
        GenerationFailed: the engine failed on it.
        Unavailable: it was aborted.
    """
    if output.finish_reason is FinishReason.ERROR:
        raise GenerationFailed(f"The engine failed on this request: {for_clients(output.error or 'no cause given')}")
    if output.finish_reason is FinishReason.ABORT:
        cause = for_clients(output.error or "the server ended it")
        raise Unavailable(f"The request was ended before it was complete: {cause}", headers={"Retry-After": "5"})
