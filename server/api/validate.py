"""A parsed body to *valid* sequences: ids inside the vocabulary, lengths inside the context, every default filled in.

What belongs here: checks that need the model. What a body may say on its own stands in `server/schema`.
"""

import hashlib
import secrets
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from scheduler.types.messages import AddRequest
from scheduler.types.sampling_params import SamplingParams
from server.api.context import Services
from server.api.tenants import ANYBODY, Caller
from server.errors import ContextExceeded, InvalidRequest, UnsupportedField
from server.schema.chat import ChatRequest, Message
from server.schema.completions import DEFAULT_MAX_TOKENS, CompletionRequest
from server.schema.sampling import Sampling
from server.schema.shown import shown
from server.text.chat_template import TemplateError
from server.text.tokenizer import Tokenizer

# Below this the softmax is the arg-max but for exact ties, and logits / temperature leaves the range of fp32.
GREEDY_BELOW = 1e-4


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a sequence starts from; `text` is the client's own, None where it sent ids. `param` is its path."""

    ids: list[int]
    text: str | None
    param: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """One choice of the answer."""

    index: int
    prompt: Prompt
    request: AddRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A valid request: nothing about it can be refused any more, but for room in the queue.

    Choices of one prompt stand together: choice `j` of prompt `i` is sequence `i * n + j`.
    """

    id: str
    created: int
    model: str
    body: CompletionRequest | ChatRequest
    sequences: list[Sequence]


def completion_job(body: CompletionRequest, services: Services, caller: Caller = ANYBODY) -> Job:
    """The job of a completions request.

    Raises:
        InvalidRequest, ContextExceeded, UnsupportedField, ModelNotFound: what is wrong, with limit and value.
        Unavailable: the engine never was ready.
    """
    model = services.model_name(body.model)
    if body.best_of not in (None, body.n):
        raise UnsupportedField(
            f"`best_of` is served only where it equals `n`={body.n}, got {body.best_of}", param="best_of"
        )
    _check_stream_options(body)
    _check_priority(body, services)
    _check_pin(body, services)
    _check_sequences(len(body.prompt), body.n, services)
    prompts = _completion_prompts(body, services)
    echoed = body.logprobs if body.echo else None
    most = max((n for n in (body.prompt_logprobs, echoed) if n is not None), default=None)
    common = replace(_sampling(body, services), logprobs=body.logprobs, prompt_logprobs=most)
    settings = _with_room(prompts, body.max_tokens, DEFAULT_MAX_TOKENS, common, services)
    return _job("cmpl", model, body, list(zip(prompts, settings, strict=True)), caller)


def chat_job(body: ChatRequest, services: Services, caller: Caller = ANYBODY) -> Job:
    """The job of a chat request. Raises as `completion_job`."""
    model = services.model_name(body.model)
    _check_stream_options(body)
    _check_priority(body, services)
    _check_pin(body, services)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest(
            f"`top_logprobs` needs `logprobs` to be true, got {body.top_logprobs}", param="top_logprobs"
        )
    text = render(
        body.messages, body.add_generation_prompt, body.continue_final_message, body.chat_template_kwargs, services
    )
    prompt = _prompt(text, False, services, "messages")
    common = replace(
        _sampling(body, services),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
    )
    settings = _with_room([prompt], _chat_max_tokens(body), None, common, services)
    return _job("chatcmpl", model, body, [(prompt, settings[0])], caller)


def render(
    messages: list[Message], add: bool | None, continue_final: bool, kwargs: dict[str, Any], services: Services
) -> str:
    """The prompt text of a conversation.

    Raises:
        InvalidRequest: the model has no template, or the template refuses the conversation.
    """
    if services.template is None:
        raise InvalidRequest("The model has no chat template; use /v1/completions, or start with --chat-template")
    if add and continue_final:
        message = "`add_generation_prompt` and `continue_final_message` exclude each other, got both"
        raise InvalidRequest(message, param="add_generation_prompt")
    reserved = {"messages", "add_generation_prompt", "continue_final_message"} & kwargs.keys()
    if reserved:
        name = min(reserved)
        raise InvalidRequest(f"`chat_template_kwargs` must not hold `{name}`", param=f"chat_template_kwargs.{name}")
    try:
        return services.template.render(
            [_for_template(message) for message in messages],
            add_generation_prompt=not continue_final if add is None else add,
            continue_final_message=continue_final,
            **kwargs,
        )
    except TemplateError as error:
        raise InvalidRequest(f"The chat template refuses `messages`: {error}", param="messages") from None


def check_ids(ids: Iterable[int], services: Services, param: str) -> None:
    """Every id is one of the model's.

    Raises:
        InvalidRequest: one is not; names it and the largest id.
    """
    size = services.info().vocab_size
    for i, token in enumerate(ids):
        if not 0 <= token < size:
            raise InvalidRequest(
                f"`{param}[{i}]` must be a token id of 0 to {size - 1}, got {token}", param=f"{param}[{i}]"
            )


def _for_template(message: Message) -> dict[str, Any]:
    # Templates of the architectures that are served know no developer; it is OpenAI's newer name of the system.
    role = "system" if message.role == "developer" else message.role
    named = {} if message.name is None else {"name": message.name}
    return {"role": role, "content": message.content, **named}


def _completion_prompts(body: CompletionRequest, services: Services) -> list[Prompt]:
    params = ["prompt"] if len(body.prompt) == 1 else [f"prompt[{i}]" for i in range(len(body.prompt))]
    for given, param in zip(body.prompt, params, strict=True):  # sizes first: they cost nothing
        if isinstance(given, str):
            _check_bytes(given, services, param)
        else:
            check_count(given, services, param)
    return [
        _prompt(given, body.add_special_tokens, services, param)
        for given, param in zip(body.prompt, params, strict=True)
    ]


def _prompt(given: str | list[int], add_special_tokens: bool, services: Services, param: str) -> Prompt:
    """A text or ids as a prompt that fits the context."""
    if isinstance(given, str):
        ids = text_ids(given, add_special_tokens, services, param)
        _check_known(ids, services, param)
        check_count(ids, services, param)
    else:
        ids = given
        check_ids(ids, services, param)
    if not ids:
        raise InvalidRequest(f"`{param}` must hold at least one token, got 0", param=param)
    return Prompt(ids, given if isinstance(given, str) else None, param)


def text_ids(text: str, add_special_tokens: bool, services: Services, param: str) -> list[int]:
    """The ids of a text, however many up to the bound on its bytes.

    Raises:
        ContextExceeded: the text has so many bytes that its tokens cannot fit the context; it was not tokenized.
    """
    _check_bytes(text, services, param)
    return services.tokenizer.encode(text, add_special_tokens=add_special_tokens)


def _check_bytes(text: str, services: Services, param: str) -> None:
    context = services.info().context
    size = len(text.encode())
    if size <= context:
        return
    longest = services.tokenizer.longest_token
    if size > context * longest:
        raise ContextExceeded(
            f"`{param}` must have at most {context * longest} bytes, {longest} (the longest token) for each of the {context} "
            f"tokens of this server's context, got {size}",
            param=param,
        )


def check_count(ids: list[int], services: Services, param: str) -> None:
    """As many ids as the context has room for, at most.

    Raises:
        ContextExceeded: with the limit and the count.
    """
    context = services.info().context
    if len(ids) > context:
        raise ContextExceeded(
            f"`{param}` must have at most {context} tokens, the context of this server, got {len(ids)}", param=param
        )


def _check_known(ids: list[int], services: Services, param: str) -> None:
    """A text has only tokens the model has; some models come with a tokenizer that knows more, such as an added `[PAD]`."""
    size = services.info().vocab_size
    if max(ids, default=0) >= size:
        token = next(token for token in ids if token >= size)
        spelled = services.tokenizer.token_text(token)
        raise InvalidRequest(
            f"`{param}` must hold only tokens of the model, ids 0 to {size - 1}, got {token} ({shown(spelled)})",
            param=param,
        )


def _check_sequences(prompts: int, n: int, services: Services) -> None:
    most = max(services.settings.max_prompts, services.settings.max_n)
    if prompts * n > most:
        raise InvalidRequest(f"`n` times the number of prompts must be at most {most}, got {n} x {prompts}", param="n")


def _check_stream_options(body: Sampling) -> None:
    options = body.stream_options
    if options is None:
        return
    if not body.stream:
        raise InvalidRequest("`stream_options` needs `stream` to be true, got false", param="stream_options")
    if options.continuous_usage_stats and not options.include_usage:
        raise InvalidRequest(
            "`stream_options.continuous_usage_stats` needs `stream_options.include_usage` to be true, got false",
            param="stream_options.continuous_usage_stats",
        )


def _check_pin(body: Sampling, services: Services) -> None:
    if body.cache_pin_seconds and not services.settings.prefix_caching:
        raise UnsupportedField(
            f"`cache_pin_seconds` must be 0 where no prefixes are cached (--no-prefix-caching), got {body.cache_pin_seconds:g}",
            param="cache_pin_seconds",
        )


def _check_priority(body: Sampling, services: Services) -> None:
    if body.priority and services.settings.scheduling == "fcfs":
        raise UnsupportedField(
            f"`priority` must be 0 where requests are served as they come (scheduling is fcfs), got {body.priority}; start "
            "with --scheduling priority, fair or throughput",
            param="priority",
        )


def _chat_max_tokens(body: ChatRequest) -> int | None:
    given = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(given) > 1:
        raise InvalidRequest(
            "`max_completion_tokens` must equal `max_tokens` where both are given, "
            f"got {body.max_completion_tokens} and {body.max_tokens}",
            param="max_completion_tokens",
        )
    return given.pop() if given else None


def _with_room(
    prompts: list[Prompt], asked: int | None, default: int | None, common: SamplingParams, services: Services
) -> list[SamplingParams]:
    """The settings of each prompt, with `max_tokens` such that prompt and output fit the context.

    Without a wish it is `default` (None: no bound) or what is left, whichever is less.
    """
    context = services.info().context
    settings: list[SamplingParams] = []
    for prompt in prompts:
        left = context - len(prompt.ids)
        wanted = asked if asked is not None else max(1, left if default is None else min(default, left))
        if wanted > left:
            raise ContextExceeded(
                f"prompt and output must have at most {context} tokens together, the context of this server, "
                f"got {len(prompt.ids)} in `{prompt.param}` and {wanted} in `max_tokens`",
                param=prompt.param if asked is None else "max_tokens",
            )
        if common.min_tokens > wanted:
            raise InvalidRequest(
                f"`min_tokens` must be at most `max_tokens`={wanted}, got {common.min_tokens}", param="min_tokens"
            )
        settings.append(replace(common, max_tokens=wanted))
    return settings


def _sampling(body: Sampling, services: Services) -> SamplingParams:
    """What all sequences of the request share; `max_tokens` and `seed` are set for each."""
    check_ids(body.stop_token_ids, services, "stop_token_ids")
    size = services.info().vocab_size
    for token in body.logit_bias:
        if token >= size:
            param = f"logit_bias.{token}"
            raise InvalidRequest(f"`{param}` must be named by a token id of 0 to {size - 1}, got {token}", param=param)
    return SamplingParams(
        max_tokens=0,
        min_tokens=body.min_tokens,
        temperature=body.temperature if body.temperature >= GREEDY_BELOW else 0.0,
        top_k=max(0, body.top_k),
        top_p=body.top_p,
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=body.logit_bias,
        bad_words=_bad_words(body.bad_words, services.tokenizer),
        stop_token_ids=tuple(dict.fromkeys(body.stop_token_ids)),
        ignore_eos=body.ignore_eos,
    )


def _bad_words(words: list[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Each word's tokens, at the beginning of a text and after a space."""
    found: dict[tuple[int, ...], None] = {}
    for i, word in enumerate(words):
        for text in (word, f" {word.lstrip()}"):
            ids = tuple(tokenizer.encode(text, add_special_tokens=False))
            if not ids:
                raise InvalidRequest(f"`bad_words[{i}]` must hold at least one token, got 0", param=f"bad_words[{i}]")
            found[ids] = None
    return tuple(found)


def _job(
    prefix: str,
    model: str,
    body: CompletionRequest | ChatRequest,
    prompts: list[tuple[Prompt, SamplingParams]],
    caller: Caller,
) -> Job:
    job_id = f"{prefix}-{uuid.uuid4().hex}"
    sequences: list[Sequence] = []
    for prompt, settings in prompts:
        for choice in range(body.n):
            index = len(sequences)
            request = AddRequest(
                request_id=f"{job_id}-{index}",
                prompt_ids=prompt.ids,
                sampling=replace(settings, seed=choice_seed(body.seed, choice)),
                priority=body.priority,
                cache_salt=caller.salted(body.cache_salt),
                pin_seconds=body.cache_pin_seconds,
                tenant=caller.tenant_of(body.user),
            )
            sequences.append(Sequence(index, prompt, request))
    return Job(id=job_id, created=int(time.time()), model=model, body=body, sequences=sequences)


def choice_seed(seed: int | None, choice: int) -> int:
    """The seed of one choice: drawn where the client gave none, else the client's for the first and derived for the others.

    The prompt's place in a list does not count, so a prompt's text is the same alone and in a list.
    """
    if seed is None:
        return secrets.randbits(63)
    if choice == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
