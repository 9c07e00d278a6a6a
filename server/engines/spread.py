"""A job of several prompts over several engines: its end comes sooner, and prompts that differ have no blocks to share."""

from collections.abc import Callable, Sequence

from scheduler.types.messages import AddRequest
from server.engines.client import EngineClient
from server.stream.output_stream import OutputStream
from server.telemetry.lifetime import Lifetime


class SpreadJob:
    """Stands for these engines while a job is submitted. The sequences of one prompt go to one, so that they share its blocks.

    Args:
        engines: that take requests now, and compute the same.
        choose: which of these a prompt goes to, given its first sequence; asked when those before it have been submitted.
    """

    def __init__(
        self, engines: Sequence[EngineClient], choose: Callable[[AddRequest, Sequence[EngineClient]], EngineClient]
    ) -> None:
        self._engines = tuple(engines)
        self._choose = choose
        self._prompt: list[int] | None = None
        self._engine = self._engines[0]
        self._hand_over = False

    @property
    def fingerprint(self) -> str:
        """The same for all of them."""
        return self._engine.fingerprint

    def ensure_room(self, sequences: int) -> None:
        """As `EngineClient.ensure_room`: one that could take all of them is enough for each of them to find room somewhere."""
        if not any(engine.has_room(sequences) for engine in self._engines):
            self._engine.ensure_room(sequences)

    def submit(self, request: AddRequest, lifetime: Lifetime) -> OutputStream:
        """As `EngineClient.submit`."""
        if request.prompt_ids is not self._prompt:  # of adjacent sequences, those of one prompt have the same list
            self._prompt, self._engine = request.prompt_ids, self._choose(request, self._engines)
            self._hand_over = request.hand_over
        request.hand_over = self._hand_over
        return self._engine.submit(request, lifetime)
