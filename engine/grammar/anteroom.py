"""Where requests wait that need something made before they can be scheduled, such as a compiled grammar.

It is made in a thread of its own, which the first such request starts; everybody else passes at once. For the scheduler, a request
in here does not exist yet.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from scheduler.types.messages import AbortRequests, AddRequest, Command, Shutdown
from scheduler.types.sampling_params import SamplingParams


class Preparation(Protocol):
    """What a worker has to make before it can compute some requests."""

    def needed(self, sampling: SamplingParams) -> bool:
        """Whether something is missing for a request with these settings."""
        ...

    def prepare(self, sampling: SamplingParams) -> None:
        """Make it. Runs beside the worker; what fails here fails again, and is told, when the worker needs it."""
        ...


class Anteroom:
    """Holds requests back until they are prepared.

    Args:
        preparation: what has to be made; None: nothing, ever.
        wake: called from another thread when a request may go on.
    """

    def __init__(self, preparation: Preparation | None, wake: Callable[[], object]) -> None:
        self._preparation = preparation
        self._wake = wake
        self._waiting: dict[str, tuple[AddRequest, Future[None]]] = {}
        self._thread: ThreadPoolExecutor | None = None

    def pass_on(self, commands: Iterable[Command]) -> Iterator[Command]:
        """The commands that may be obeyed now, in their order, without requests that have to wait, then those that have waited.

        A request that is to be aborted goes on just before, and so does every one before the end.
        """
        for command in commands:
            match command:
                case AddRequest() if self._preparation is not None and self._preparation.needed(command.sampling):
                    self._hold(self._preparation, command)
                    continue
                case AbortRequests():
                    yield from self._let_go(command.request_ids)
                case Shutdown():
                    yield from self._let_go(list(self._waiting))
            yield command
        yield from self._let_go([name for name, (_, made) in self._waiting.items() if made.done()])

    def _hold(self, preparation: Preparation, request: AddRequest) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="anteroom")
        made = self._thread.submit(preparation.prepare, request.sampling)
        made.add_done_callback(lambda _: self._wake())
        self._waiting[request.request_id] = request, made

    def _let_go(self, request_ids: Iterable[str]) -> Iterator[AddRequest]:
        for request_id in request_ids:
            if request_id in self._waiting:
                yield self._waiting.pop(request_id)[0]
