"""`POST /v1/completions`: texts or token ids in, what follows them out."""

from collections.abc import Iterator
from dataclasses import replace

from server.api.answers.answer import ERRORS, STREAM, text_answer
from server.api.answers.formats import AnswerFormat, JsonObject
from server.api.answers.logprobs import completion_lists
from server.api.context import ServerContext
from server.api.endpoint import PostEndpoint
from server.api.requests.validate import (
    check_bytes,
    check_count,
    check_sequences,
    check_shared,
    prompt_of,
    sampling_of,
    text_job,
    with_room,
)
from server.api.tenants import ANYBODY, Tenant
from server.errors import UnsupportedField
from server.schema.answers import CompletionAnswer
from server.schema.completions import DEFAULT_MAX_TOKENS, CompletionRequest
from server.stream.generation import Delta
from server.stream.job import TextJob, TokenizedPrompt
from server.text.detokenizer import Detokenizer
from server.text.tokenizer import Tokenizer


def completion_job(
    body: CompletionRequest, context: ServerContext, tenant: Tenant = ANYBODY
) -> TextJob[CompletionRequest]:
    """The job of a completions request.

    Raises:
        InvalidRequest, ContextExceeded, UnsupportedField, ModelNotFound: what is wrong, with limit and value.
        Unavailable: no engine was ever ready.
    """
    model = context.model_name(body.model, tenant)
    if body.best_of not in (None, body.n):
        raise UnsupportedField(
            f"`best_of` is served only where it equals `n`={body.n}, got {body.best_of}", param="best_of"
        )
    check_shared(body, context, tenant)
    check_sequences(len(body.prompt), body.n, context)
    prompts = _completion_prompts(body, context)
    echoed = body.logprobs if body.echo else None
    most = max((n for n in (body.prompt_logprobs, echoed) if n is not None), default=None)
    common = replace(sampling_of(body, context), logprobs=body.logprobs, prompt_logprobs=most)
    settings = with_room(prompts, body.max_tokens, DEFAULT_MAX_TOKENS, common, context)
    return text_job("cmpl-", model, body, zip(prompts, settings, strict=True), tenant, context=context, continues=True)


def _completion_prompts(body: CompletionRequest, context: ServerContext) -> list[TokenizedPrompt]:
    params = ["prompt"] if len(body.prompt) == 1 else [f"prompt[{i}]" for i in range(len(body.prompt))]
    for given, param in zip(body.prompt, params, strict=True):  # sizes first: they cost nothing
        if isinstance(given, str):
            check_bytes(given, context, param)
        else:
            check_count(given, context, param)
    return [
        prompt_of(given, body.add_special_tokens, context, param, context.tokenizer.encode)
        for given, param in zip(body.prompt, params, strict=True)
    ]


class CompletionFormat(AnswerFormat[CompletionRequest]):
    """`/v1/completions`, with the prompt in front where `echo` asks for it."""

    chunk_object = "text_completion"
    answer_object = "text_completion"

    def __init__(self, job: TextJob[CompletionRequest], tokenizer: Tokenizer) -> None:
        super().__init__(job, tokenizer)
        self._echo = job.body.echo
        self._most = job.body.logprobs
        self._echoes: dict[int, tuple[str, list[int]]] = {}  # by prompt; choices of one prompt share it

    def opening(self, delta: Delta) -> Iterator[JsonObject]:
        """The prompt, where it is echoed."""
        text, logprobs = self._echo_of(delta) if self._echo else ("", None)
        if text or logprobs:
            yield {"index": delta.index, "text": text, "logprobs": logprobs, "finish_reason": None}

    def chunks(self, delta: Delta) -> Iterator[JsonObject]:
        """Text; the last of it says how it ended, since a client that times chunks would count a further one as a token."""
        ids, logprobs = self.token_ids(delta), self._logprobs(delta)
        ended = delta.finish_reason is not None
        if not delta.text and not (delta.token_ids and (ids or logprobs)):
            if not ended:
                return
            ids, logprobs = {}, None
        reason = {"stop_reason": delta.stop_reason} if ended else {}
        chunk = {"index": delta.index, "text": delta.text, "logprobs": logprobs, "finish_reason": delta.finish_reason}
        yield {**chunk, **reason, **ids}

    def whole(self, delta: Delta) -> JsonObject:
        """The text."""
        text, logprobs = self._echo_of(delta) if self._echo else ("", None)
        generated = self._logprobs(delta)
        if logprobs is not None and generated is not None:
            generated = {key: logprobs[key] + generated[key] for key in logprobs}
        return {
            "index": delta.index,
            "text": text + delta.text,
            "logprobs": generated,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
            **self.token_ids(delta),
            **self.extras(delta),
        }

    def _echo_of(self, delta: Delta) -> tuple[str, JsonObject | None]:
        text, offsets = self._echo_text(self.prompt(delta))
        if self._most is None:
            return text, None
        ids = self.prompt(delta).ids
        entries = [None, *delta.prompt_logprobs]
        return text, completion_lists(entries, ids, offsets, self._most, self.tokenizer)

    def _logprobs(self, delta: Delta) -> JsonObject | None:
        if self._most is None:
            return None
        start = len(self._echo_text(self.prompt(delta))[0]) if self._echo else 0
        offsets = [start + offset for offset in delta.offsets]
        return completion_lists(delta.logprobs, delta.token_ids, offsets, self._most, self.tokenizer)

    def _echo_text(self, prompt: TokenizedPrompt) -> tuple[str, list[int]]:
        key = id(prompt)
        if key not in self._echoes:
            self._echoes[key] = echo_text(prompt, self.tokenizer)
        return self._echoes[key]


def echo_text(prompt: TokenizedPrompt, tokenizer: Tokenizer) -> tuple[str, list[int]]:
    """The prompt as text, and the character at which each of its tokens begins.

    A prompt is echoed as the client wrote it: special tokens among its ids are part of it, and those that tokenizing put around a
    text are not.
    """
    with_special, its_offsets = _decoded(prompt, False, tokenizer)
    if prompt.text is None:
        return with_special, its_offsets
    decoded, offsets = _decoded(prompt, True, tokenizer)
    if prompt.text == decoded:
        return decoded, offsets
    added = len(with_special) - len(prompt.text)
    if added >= 0 and with_special.endswith(prompt.text):
        return prompt.text, [max(0, offset - added) for offset in its_offsets]
    return prompt.text, [min(offset, len(prompt.text)) for offset in offsets]  # the tokenizer normalizes text


def _decoded(prompt: TokenizedPrompt, skip_special_tokens: bool, tokenizer: Tokenizer) -> tuple[str, list[int]]:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens, continues=False)
    text = detokenizer.push(prompt.ids) + detokenizer.finish()
    return text, detokenizer.offsets


ENDPOINT = PostEndpoint(
    path="/v1/completions",
    tag="generate",
    summary="Continue a text",
    operation="text_completion",
    body=CompletionRequest,
    validate=completion_job,
    answer=text_answer(CompletionFormat),
    answers=CompletionAnswer,
    errors=ERRORS,
    content=STREAM,
    examples={"greedy": {"value": {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}}},
)
