"""A request in the simulator, from its arrival to its end."""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby

from loadtest.report.records import ErrorClass, RequestRecord
from loadtest.report.token_times import TokenEvent, TokenTimes
from loadtest.simulate.content import SimulatedText
from scheduler.types.messages import AddRequest
from scheduler.types.step import ChunkResult


@dataclass(slots=True)
class OpenRequest:
    """A request that has not ended.

    Attributes:
        message: as it is sent to a replica; one that goes on after another replica's death has `generated_ids`.
        text: its prompt and its answer, of which each step samples a token.
        record: filled in as it runs.
        given: when another replica had its first token, which handed it over, until the next one is there.
        deaths: of replicas that computed it.
        times: of the tokens in its record, in seconds.
        anew: told how many of its tokens another replica had computed and this one computes again; None: nothing of it was lost.
    """

    message: AddRequest
    text: SimulatedText
    record: RequestRecord
    given: float | None = None
    deaths: int = 0
    anew: Callable[[int], None] | None = None
    sampled: ChunkResult = field(init=False)
    times: "array[float]" = field(init=False)

    def __post_init__(self) -> None:
        self.sampled = ChunkResult(request_id=self.message.request_id, token_ids=[self.text.token])
        assert isinstance(self.record.tokens, TokenTimes)
        self.times = self.record.tokens.at

    def events(self) -> list[TokenEvent]:
        """Its tokens, those of one step together, as a client sees them."""
        return [(at, len(list(same))) for at, same in groupby(self.times)]

    def refuse(self, status: int, detail: str) -> None:
        """It is not served."""
        self.record.error, self.record.status, self.record.detail = ErrorClass.STATUS, status, detail
