"""`POST /v1/completions`: texts or token ids in, what follows them out."""

import math
from collections.abc import Iterator
from dataclasses import replace

from server.api.answers.answer import ERRORS, STREAM, text_answer
from server.api.answers.formats import AnswerFormat, JsonObject
from server.api.answers.logprobs import completion_lists
from server.api.context import ServerContext
from server.api.endpoint import PostEndpoint
from server.api.requests.truncation import truncation_of
from server.api.requests.validate import (
    check_bytes,
    check_count,
    check_sequences,
    check_shared,
    prompt_of,
    sampling_of,
    text_ids,
    text_job,
    with_room,
)
from server.api.tenants import ANYBODY, Tenant
from server.errors import InvalidRequest, UnsupportedField
from server.schema.answers import CompletionAnswer
from server.schema.completions import DEFAULT_MAX_TOKENS, CompletionRequest
from server.stream.generation import Delta
from server.stream.job import TextJob, TokenizedPrompt
from server.text.detokenizer import Detokenizer
from server.text.fill_in_middle import FillTokens, fill_prompt, fill_tokens
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
    _check_best_of(body)
    fill = _fill_tokens(body, context)
    check_shared(body, context, tenant)
    check_sequences(len(body.prompt), body.beams, context)
    prompts = _completion_prompts(body, context, fill)
    echoed = body.logprobs if body.echo else None
    most = max((n for n in (body.prompt_logprobs, echoed) if n is not None), default=None)
    choosing = 0 if body.candidates > body.n else None  # by log probability
    common = sampling_of(body, context)
    common = replace(
        common,
        logprobs=choosing if body.logprobs is None else body.logprobs,
        prompt_logprobs=most,
        stop_token_ids=tuple(dict.fromkeys(common.stop_token_ids + (fill.ends if fill is not None else ()))),
    )
    settings = with_room(prompts, body.max_tokens, DEFAULT_MAX_TOKENS, common, context)
    return text_job("cmpl-", model, body, zip(prompts, settings, strict=True), tenant, context=context, continues=True)


def _check_best_of(body: CompletionRequest) -> None:
    if body.beams < body.n:
        raise InvalidRequest(f"`best_of` must be at least `n`={body.n}, got {body.best_of}", param="best_of")
    if body.best_of not in (None, 1) and body.stream:
        message = f"`best_of` must be 1 with `stream`, as what is best is known at the end, got {body.best_of}"
        raise InvalidRequest(message, param="best_of")


def _fill_tokens(body: CompletionRequest, context: ServerContext) -> FillTokens | None:
    """The model's tokens for filling in the middle, if that is asked for.

    Raises:
        UnsupportedField: the model has none.
        InvalidRequest: it is asked for together with what would show or cut the prompt.
    """
    if not body.suffix:
        return None
    for field, asked in (("echo", body.echo), ("truncate_prompt_tokens", body.truncate_prompt_tokens is not None)):
        if asked:
            raise InvalidRequest(f"`suffix` and `{field}` exclude each other, got both", param="suffix")
    tokens = fill_tokens(context.tokenizer)
    if tokens is None:
        raise UnsupportedField(
            "`suffix` needs a model that fills in the middle, and this one has no tokens for it (such as <|fim_prefix|>); got "
            f"{len(body.suffix)} characters",
            param="suffix",
        )
    return tokens


def _completion_prompts(
    body: CompletionRequest, context: ServerContext, fill: FillTokens | None
) -> list[TokenizedPrompt]:
    params = ["prompt"] if len(body.prompt) == 1 else [f"prompt[{i}]" for i in range(len(body.prompt))]
    truncation = truncation_of(body, body.max_tokens, context)
    check_bytes(body.suffix, context, "suffix")
    for given, param in zip(body.prompt, params, strict=True):  # sizes first: they cost nothing
        if isinstance(given, str):
            check_bytes(given, context, param)
        elif truncation is None:
            check_count(given, context, param)
    if fill is not None:
        return [_filled(given, fill, body, context, param) for given, param in zip(body.prompt, params, strict=True)]
    return [
        prompt_of(given, body.add_special_tokens, context, param, context.tokenizer.encode, truncation=truncation)
        for given, param in zip(body.prompt, params, strict=True)
    ]


def _filled(
    given: str | list[int], fill: FillTokens, body: CompletionRequest, context: ServerContext, param: str
) -> TokenizedPrompt:
    """The prompt for what stands between `given` and the request's suffix."""
    tokenizer = context.tokenizer
    before = given if isinstance(given, list) else text_ids(given, False, context, param, tokenizer.encode)
    ids = fill_prompt(before, body.suffix, fill, tokenizer, add_special_tokens=body.add_special_tokens)
    return prompt_of(ids, False, context, param, tokenizer.encode)


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

    def choices(self, deltas: list[Delta]) -> list[JsonObject]:
        """Of each prompt's candidates the `n` best, the best first where there are more of them."""
        n, drawn = self.job.body.n, self.job.body.candidates
        groups = [deltas[begin : begin + drawn] for begin in range(0, len(deltas), drawn)]
        best = [
            delta
            for group in groups
            for delta in (sorted(group, key=_mean_logprob, reverse=True) if drawn > n else group)[:n]
        ]
        return [self.whole(delta) | {"index": index} for index, delta in enumerate(best)]

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
        return text, completion_lists(entries, ids, offsets, self._most, self.spell)

    def _logprobs(self, delta: Delta) -> JsonObject | None:
        if self._most is None:
            return None
        start = len(self._echo_text(self.prompt(delta))[0]) if self._echo else 0
        offsets = [start + offset for offset in delta.offsets]
        return completion_lists(delta.logprobs, delta.token_ids, offsets, self._most, self.spell)

    def _echo_text(self, prompt: TokenizedPrompt) -> tuple[str, list[int]]:
        key = id(prompt)
        if key not in self._echoes:
            self._echoes[key] = echo_text(prompt, self.tokenizer)
        return self._echoes[key]


def _mean_logprob(delta: Delta) -> float:
    """The log probability per token, by which OpenAI says that `best_of` chooses; a text without tokens comes last."""
    values = [entry.logprob for entry in delta.logprobs]
    return sum(values) / len(values) if values else -math.inf


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
