"""From the engine's outputs to text: one `Delta` for each choice and step, the source of both answer forms.

What belongs here: merging, detokenizing, stop strings. Never: JSON.
"""

import asyncio
from bisect import bisect_left
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from scheduler.types.messages import FinishReason, Output
from scheduler.types.step import TokenLogprobs
from server.stream.job import SequenceRequest, TextJob
from server.stream.submission import Engine, SequenceStream, Submission, raise_failure
from server.telemetry.lifetime import Exchange, Lifetime
from server.text.detokenizer import Detokenizer, PlainDetokenizer
from server.text.message_parser import MessageDelta, MessageForm, MessageParser
from server.text.tokenizer import Tokenizer


@dataclass(slots=True, kw_only=True)
class Delta:
    """What a choice gained. Deltas of one choice add up (`joined`) to its whole.

    `token_ids`, `offsets` and, if asked for, `logprobs` are parallel lists; they come with their text, so they may lag
    behind the engine. `offsets` count characters from the beginning of the generated text. `prompt_logprobs` come complete
    with the first delta. `counted`: the choice's tokens up to here, as `usage` counts them. `events`: what the text is read as,
    where the job has a form of messages; `text` is then as the model wrote it.
    """

    index: int
    text: str = ""
    events: list[MessageDelta] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    first: bool = False
    counted: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or stop token id; None for the model's own end

    @classmethod
    def joined(cls, deltas: "list[Delta]") -> "Delta":
        """What all deltas of one choice, in order, add up to. One pass: adding them one by one is quadratic in the text."""
        last = deltas[-1]
        return cls(
            index=last.index,
            text="".join([delta.text for delta in deltas]),
            events=[event for delta in deltas for event in delta.events],
            token_ids=[token for delta in deltas for token in delta.token_ids],
            offsets=[offset for delta in deltas for offset in delta.offsets],
            logprobs=[entry for delta in deltas for entry in delta.logprobs],
            prompt_logprobs=deltas[0].prompt_logprobs,
            first=deltas[0].first,
            counted=last.counted,
            finish_reason=last.finish_reason,
            stop_reason=last.stop_reason,
        )


def scored_tokens(deltas: Iterable[Delta]) -> int:
    """Tokens with log-probabilities, those of prompts included: what makes an answer long to write."""
    return sum(len(delta.logprobs) + len(delta.prompt_logprobs) for delta in deltas)


class TextChoice:
    """One sequence on its way to the client: detokenizes it, finds stop strings, and holds back what is not final.

    Attributes:
        finished: whether its last delta is out.
        plain: where its text is all that anybody asks for: takes tokens that are not the first, nor the last, to their text.
    """

    def __init__(self, sequence: SequenceRequest, job: TextJob[Any], tokenizer: Tokenizer, lifetime: Lifetime) -> None:
        body = job.body
        self.sequence = sequence
        self.lifetime = lifetime
        self.finished = False
        self._include_stop = body.include_stop_str_in_output
        self._stop_token_ids = frozenset(body.stop_token_ids)
        self.plain: PlainDetokenizer | None = None
        if (
            not body.stop
            and job.form is None
            and not body.return_token_ids
            and sequence.request.sampling.logprobs is None
        ):
            self.plain = PlainDetokenizer(
                tokenizer, skip_special_tokens=body.skip_special_tokens, continues=job.continues
            )
        self._detokenizer = self.plain or Detokenizer(
            tokenizer,
            stop=body.stop,
            min_tokens=body.min_tokens,
            include_stop=body.include_stop_str_in_output,
            skip_special_tokens=body.skip_special_tokens,
            shown_tokens=job.form.shown_tokens(tokenizer) if job.form is not None else frozenset(),
            continues=job.continues,
        )
        self._message = MessageReader(job.form) if job.form is not None else None
        self._held_ids: list[int] = []  # tokens whose text is not out yet
        self._held_logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: list[TokenLogprobs] = []
        self._released = 0
        self._first = True

    def absorb(self, output: Output) -> Delta | None:
        """The delta of one output; None if there is nothing to report.

        Raises:
            GenerationFailed: the engine failed on this sequence.
            Unavailable: the server ended it, because it is shutting down.
        """
        raise_failure(output)
        self._prompt_logprobs += output.prompt_logprobs
        if not output.token_ids and output.finish_reason is None:
            return None
        self._held_ids += output.token_ids
        self._held_logprobs += output.logprobs
        hidden = output.stop_token is not None and not self._include_stop
        before = self._detokenizer.consumed
        text = self._detokenizer.push(output.token_ids[:-1] if hidden else output.token_ids)
        if output.finish_reason is not None and self._detokenizer.stopped is None:
            text += self._detokenizer.finish(output.stop_token if hidden else None)
        delta = Delta(index=self.sequence.index, text=text, first=self._first)
        if self._detokenizer.stopped is not None:
            # Tokens after the stop string were computed but are not part of the answer.
            self.lifetime.completion_tokens -= len(output.token_ids) - (self._detokenizer.consumed - before)
            self._end(delta, FinishReason.STOP, self._detokenizer.stopped)
        elif output.finish_reason is not None:
            stop_token = output.stop_token if output.stop_token in self._stop_token_ids else None
            self._end(delta, output.finish_reason, stop_token)
        delta.counted = self.lifetime.completion_tokens
        self._release(delta)
        if self._message is not None:
            self._message.read(delta)
            if self.finished:
                self.lifetime.reasoning_tokens = self._message.reasoning_tokens
        return self._emit(delta)

    @property
    def reasoning_tokens(self) -> int:
        """Of the answer so far, how many belong to its reasoning."""
        return 0 if self._message is None else self._message.reasoning_tokens

    def _end(self, delta: Delta, reason: FinishReason, stop_reason: str | int | None) -> None:
        self.finished = True
        self.lifetime.reason = reason
        delta.finish_reason, delta.stop_reason = reason, stop_reason

    def _release(self, delta: Delta) -> None:
        """Move tokens whose text is out to the delta."""
        count = self._detokenizer.released - self._released
        delta.offsets = self._detokenizer.offsets[self._released : self._released + count]
        self._released += count
        delta.token_ids, self._held_ids = self._held_ids[:count], self._held_ids[count:]
        delta.logprobs, self._held_logprobs = self._held_logprobs[:count], self._held_logprobs[count:]

    def _emit(self, delta: Delta) -> Delta | None:
        if self._first:
            delta.prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, []
            self._first = False
            return delta
        return delta if delta.text or delta.token_ids or delta.finish_reason is not None else None


class MessageReader:
    """Reads the text of one choice as a message, and counts what it takes to think."""

    def __init__(self, form: MessageForm) -> None:
        self._parser = MessageParser(form)
        self._offsets: list[int] = []  # of all tokens, while it is not known which of them are reasoning

    def read(self, delta: Delta) -> None:
        """Give the delta its events."""
        self._offsets += delta.offsets
        delta.events = self._parser.push(delta.text) if delta.text else []
        if delta.finish_reason is not None:
            delta.events += self._parser.finish()

    @property
    def reasoning_tokens(self) -> int:
        """How many of the tokens so far are reasoning, its tags included."""
        reasoning = self._parser.reasoning
        return bisect_left(self._offsets, reasoning.stop) - bisect_left(self._offsets, reasoning.start)


class Outlet(Protocol):
    """Where deltas can be sent at once, while it is `ready`."""

    ready: Callable[[], bool]

    @property
    def texts(self) -> bool:
        """Whether it takes a text with which no more is said."""

    def write(self, deltas: list[Delta]) -> None:
        """Send what one step brought."""

    def write_quoted(self, text: bytes) -> None:
        """Send the text that an only choice gained, as JSON, where `texts`."""


class Generation:
    """All choices of one text job, from submission to the last delta. It must be closed, whatever happens."""

    def __init__(self, job: TextJob[Any], engine: Engine, tokenizer: Tokenizer, exchange: Exchange) -> None:
        """Submit all sequences, or none.

        Raises:
            QueueFull, Unavailable: the engine does not take them now.
        """
        self.job = job
        self._submission = Submission(job, engine, exchange)
        self._streams = self._submission.streams
        try:
            pairs = zip(job.sequences, self._submission.lifetimes, strict=True)
            self.choices = [TextChoice(sequence, job, tokenizer, lifetime) for sequence, lifetime in pairs]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End what is still running; the engine aborts it and frees its blocks."""
        self._submission.close()

    @property
    def started(self) -> bool:
        """Whether any of it has been computed."""
        return any(stream.started for stream in self._streams)

    def attend(self, outlet: Outlet) -> None:
        """From now on send what an only choice gains as it arrives, while the reader of `steps` waits; he never sees it."""
        if len(self.choices) == 1:
            choice, stream = self.choices[0], self._streams[0]
            if outlet.texts and choice.plain is not None:
                stream.attend(_OnlyText(choice, stream, outlet, choice.plain.push_quoted))
            else:
                stream.attend(_OnlyChoice(choice, stream, outlet))

    async def steps(self) -> AsyncGenerator[list[Delta], None]:
        """The deltas of all choices, those of one engine step together. Ends when all choices have ended.

        Raises:
            GenerationFailed, EngineDied, PoisonRequest, Unavailable: the whole request ends here, with all its choices.
        """
        if len(self.choices) == 1:
            async for output in self._streams[0]:
                delta = _advance(self.choices[0], self._streams[0], output)
                if delta is not None:
                    yield [delta]
            return
        merge = _Merge(len(self.choices))
        pairs = zip(self.choices, self._streams, strict=True)
        tasks = [asyncio.create_task(merge.pump(choice, stream)) for choice, stream in pairs]
        try:
            while deltas := await merge.take():
                yield deltas
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _OnlyChoice:
    """Takes the outputs of one choice to where they are sent."""

    def __init__(self, choice: TextChoice, stream: SequenceStream, outlet: Outlet) -> None:
        self._choice, self._stream, self._outlet = choice, stream, outlet
        self.ready = outlet.ready

    def take(self, output: Output) -> None:
        """Send one."""
        delta = _advance(self._choice, self._stream, output)
        if delta is not None:
            self._outlet.write([delta])

    def take_token(self, token_id: int) -> None:
        """Send one token."""
        self.take(Output(request_id=self._choice.sequence.request.request_id, token_ids=[token_id]))


class _OnlyText(_OnlyChoice):
    """The same where its text is all that is sent: each token's, as JSON."""

    def __init__(
        self, choice: TextChoice, stream: SequenceStream, outlet: Outlet, quoted: Callable[[int], bytes]
    ) -> None:
        super().__init__(choice, stream, outlet)
        self._quoted = quoted

    def take_token(self, token_id: int) -> None:
        """Send one token."""
        if text := self._quoted(token_id):
            self._outlet.write_quoted(text)


def _advance(choice: TextChoice, stream: SequenceStream, output: Output) -> Delta | None:
    delta = choice.absorb(output)
    if choice.finished:
        stream.close()  # after a stop string the engine would compute what nobody sees
    return delta


class _Merge:
    """Deltas of several choices, taken together. All outputs of a step arrive in one turn of the event loop."""

    def __init__(self, choices: int) -> None:
        self._open = choices
        self._deltas: list[Delta] = []
        self._error: Exception | None = None
        self._arrived = asyncio.Event()

    async def pump(self, choice: TextChoice, stream: SequenceStream) -> None:
        """Collect the deltas of one choice until it ends."""
        try:
            async for output in stream:
                delta = _advance(choice, stream, output)
                if delta is not None:
                    self._deltas.append(delta)
                    self._arrived.set()
        except Exception as error:
            self._error = self._error or error
        finally:
            self._open -= 1
            self._arrived.set()

    async def take(self) -> list[Delta]:
        """What has arrived since the last call, at least one delta; nothing once all choices have ended."""
        while not self._deltas and self._open and self._error is None:
            await self._arrived.wait()
            self._arrived.clear()
        if self._error is not None:
            raise self._error
        deltas, self._deltas = self._deltas, []
        return deltas
