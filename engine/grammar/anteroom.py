"""Where requests wait that need something made before they can be scheduled, such as a compiled grammar.

It is made in a thread of its own, which the first such request starts; everybody else passes at once. For the scheduler, a request
in here does not exist yet.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from scheduler.types.messages import AbortRequests, AddRequest, Command, Output, Shutdown
from scheduler.types.sampling_params import SamplingParams


class Preparation(Protocol):
    """What a worker has to make before it can compute some requests."""

    def missing(self, request: AddRequest) -> str:
        """The name of what has to be made for a request; empty, if all is there. What is there is kept until the request ends."""
        ...

    def prepare(self, sampling: SamplingParams) -> None:
        """Make it. Runs beside the worker; what fails here fails again, and is told, when the worker needs it."""
        ...

    def ended(self, request_id: str) -> None:
        """A request has ended, whether or not anything was kept for it."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether anything is kept for any request."""
        ...


@dataclass(slots=True)
class _Making:
    """What is being made, or is to be, and who waits for it."""

    made: Future[None]
    requests: dict[str, AddRequest] = field(default_factory=dict)


class Anteroom:
    """Holds requests back until they are prepared.

    Args:
        preparation: what has to be made; None: nothing, ever.
        wake: called from another thread when a request may go on.
    """

    def __init__(self, preparation: Preparation | None, wake: Callable[[], object]) -> None:
        self._preparation = preparation
        self._wake = wake
        self._making: dict[str, _Making] = {}  # by name, each once
        self._waits_for: dict[str, str] = {}  # by request, what
        self._thread: ThreadPoolExecutor | None = None

    def pass_on(self, commands: Iterable[Command]) -> Iterator[Command]:
        """The commands that may be obeyed now, in their order, without requests that have to wait, then those that have waited.

        A request that is to be aborted goes on just before, and so does every one before the end.
        """
        for command in commands:
            match command:
                case AddRequest() if self._preparation is not None and (name := self._preparation.missing(command)):
                    self._hold(self._preparation, command, name)
                    continue
                case AbortRequests():
                    yield from self._let_go(command.request_ids)
                case Shutdown():
                    yield from self._let_go(list(self._waits_for))
            yield command
        if self._making:
            yield from self._let_go(
                [key for each in self._making.values() if each.made.done() for key in each.requests]
            )

    def ended(self, outputs: Iterable[Output]) -> None:
        """What the engine is about to say of requests: those that have ended need nothing any longer."""
        if self._preparation is not None and self._preparation.keeps:
            for output in outputs:
                if output.finish_reason is not None:
                    self._preparation.ended(output.request_id)

    def _hold(self, preparation: Preparation, request: AddRequest, name: str) -> None:
        if name not in self._making:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="anteroom")
            self._making[name] = _Making(self._thread.submit(preparation.prepare, request.sampling))
            self._making[name].made.add_done_callback(lambda _: self._wake())
        self._making[name].requests[request.request_id] = request
        self._waits_for[request.request_id] = name

    def _let_go(self, request_ids: Iterable[str]) -> Iterator[AddRequest]:
        """These go on, those of them that wait. What nobody waits for any longer is not made."""
        for request_id in request_ids:
            if (name := self._waits_for.pop(request_id, "")) and self._preparation is not None:
                making = self._making[name]
                request = making.requests.pop(request_id)
                if not making.requests:
                    making.made.cancel()
                    del self._making[name]
                self._preparation.missing(request)  # keeps it, if it is there
                yield request
