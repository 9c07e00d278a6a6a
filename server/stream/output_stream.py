"""The open sequences of the HTTP process: one `OutputStream` each, fed by the engine client.

A deque and a future instead of an `asyncio.Queue`: one wake-up per step, no lock, and nothing is created while outputs wait.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from scheduler.types.messages import AddRequest, FinishReason, Output
from server.telemetry.lifetime import Lifetime


class Attendant(Protocol):
    """Handles outputs where they arrive, in place of a reader that waits: no task is woken for a token.

    `ready` says whether it can handle the next one at once.
    """

    ready: Callable[[], bool]

    def take(self, output: Output) -> None:
        """Handle it."""

    def take_token(self, token_id: int) -> None:
        """Handle an output that is one token and nothing else."""


class OutputStream:
    """What the engine produces for one sequence, in order; an `AsyncIterator[Output]` for one reader.

    Ends after the `Output` that has a `finish_reason`. Raises an `ApiError` if the engine ends first and no other goes on. Whoever
    opened it closes it (`async with contextlib.aclosing(stream)`): closing it or cancelling the iteration before the end aborts
    the sequence in the engine. `lifetime` is up to date for what has been read so far; the reader may still correct it after
    the final output, until it closes the stream or asks for more.

    Attributes:
        generated_ids: all tokens that have arrived; another engine can go on after them (`replay`).
        started: whether the engine that has it has computed any of it.
        deaths: engines that ended while they computed it.
        handed_over: when it was given to another engine, in `time.monotonic()` seconds; None once that has brought a token.
    """

    def __init__(self, request: AddRequest, lifetime: Lifetime, on_end: Callable[["OutputStream"], None]) -> None:
        self.request = request
        self.request_id = request.request_id
        self.lifetime = lifetime
        self.generated_ids = lifetime.output_ids = list(request.generated_ids)
        self.started = False
        self.deaths = 0
        self.handed_over: float | None = None
        self._prompt_logprobs = 0  # that have arrived
        self._repeated = 0  # of those that come next, so many have arrived before
        self._on_end = on_end
        self._outputs: deque[Output] = deque()
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._attendant: Attendant | None = None
        self._last: FinishReason | None = None  # of the final output, once it was handed out
        self._ended = False

    def __aiter__(self) -> "OutputStream":
        return self

    async def __anext__(self) -> Output:
        if self._last is not None:
            self._end(self._last)
        if self._ended:
            raise StopAsyncIteration
        if not self._outputs and self._error is None:
            await self._arrival()
        if self._outputs:
            return self._take()
        if self._ended or self._error is None:  # closed while waiting
            raise StopAsyncIteration
        error = self._error
        self._end(FinishReason.ERROR)
        raise error

    async def _arrival(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._waiter = None

    def _take(self) -> Output:
        output = self._outputs.popleft()
        self.lifetime.completion_tokens += len(output.token_ids)
        self.lifetime.failed |= output.error is not None
        self._last = output.finish_reason
        return output

    def attend(self, attendant: Attendant) -> None:
        """From now on offer outputs to this one first, if they come while the reader waits: all but the last, and what may be
        long to handle. The reader never sees what it takes; should it fail, the reader is told."""
        self._attendant = attendant

    def _attended(self, output: Output) -> bool:
        """Whether the attendant has taken the output."""
        attendant = self._attendant
        if attendant is None or not self._waits or not attendant.ready():
            return False
        if output.finish_reason is not None or output.prompt_logprobs:
            return False
        self.lifetime.completion_tokens += len(output.token_ids)
        try:
            attendant.take(output)
        except Exception as error:
            self.fail(error)
        return True

    @property
    def _waits(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _end(self, reason: FinishReason) -> None:
        if self._ended:
            return
        self._ended = True
        self.lifetime.end(reason, time.monotonic())
        self._on_end(self)

    def push(self, output: Output) -> None:
        """Feed one output; called by the engine client."""
        self.generated_ids += output.token_ids
        if output.prompt_logprobs:
            self._take_prompt_logprobs(output)
        if not self._attended(output):
            self._outputs.append(output)
            self._wake()

    def push_token(self, token_id: int) -> None:
        """Feed an output that is one token and nothing else: `push`, without one to be made, where an attendant takes it."""
        attendant, waiter = self._attendant, self._waiter
        if attendant is None or waiter is None or waiter.done() or not attendant.ready():
            self.push(Output(request_id=self.request_id, token_ids=[token_id]))
            return
        self.generated_ids.append(token_id)
        self.lifetime.completion_tokens += 1
        try:
            attendant.take_token(token_id)
        except Exception as error:
            self.fail(error)

    def _take_prompt_logprobs(self, output: Output) -> None:
        repeated = min(self._repeated, len(output.prompt_logprobs))
        output.prompt_logprobs = output.prompt_logprobs[repeated:]
        self._repeated -= repeated
        self._prompt_logprobs += len(output.prompt_logprobs)

    def owned_by(self, on_end: Callable[["OutputStream"], None]) -> None:
        """Another is told of its end."""
        self._on_end = on_end

    def replay(self) -> AddRequest:
        """What an engine is asked that goes on where the one before ended. As long as no token has arrived, it repeats
        log-probabilities of the prompt that have; the reader gets each once."""
        self.started, self.handed_over = False, None
        self._repeated = 0 if self.generated_ids else self._prompt_logprobs
        self.lifetime.replayed()
        return replace(self.request, generated_ids=self.generated_ids.copy(), hand_over=False)

    def hand_over(self, kv_wait_seconds: float) -> AddRequest:
        """What the next engine is asked, which may wait so long for KV that the one before still saves."""
        self.started = False
        self.lifetime.handed_over()
        ids = self.generated_ids.copy()
        return replace(self.request, generated_ids=ids, hand_over=False, kv_wait_seconds=kv_wait_seconds)

    def fail(self, error: Exception) -> None:
        """End with an error, after what has arrived; called by the engine client."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """End now, unless it has ended already. What was not read is dropped."""
        self._outputs.clear()
        self._end(self._last or FinishReason.ABORT)
        self._wake()

    async def aclose(self) -> None:
        """`close`, for `contextlib.aclosing`."""
        self.close()
