"""From a parsed body to *valid* sequences: ids inside the vocabulary, lengths inside the context, every default filled in.

What belongs here: checks that need the model. What can be checked by the body alone stands in `server/schema`.
"""

import hashlib
import secrets
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from configs.settings import Settings
from scheduler.router.deadlines import Deadline, DeadlineFor
from scheduler.types.messages import AddRequest
from scheduler.types.output_kind import OutputKind
from scheduler.types.sampling_params import SamplingParams
from server.api.context import ServerContext
from server.api.requests.beams import beams_of, check_beams
from server.api.requests.tasks import check_task
from server.api.requests.truncation import Truncation
from server.api.tenants import Tenant, outranks
from server.errors import ContextExceeded, InvalidRequest, UnsupportedField
from server.schema.pooling.bodies import PooledBody
from server.schema.sampling import Sampling
from server.schema.shown import shown, some
from server.stream.job import SequenceRequest, TextJob, TokenizedPrompt
from server.structured.asked import grammar_of
from server.text.chat_renderer import Encode
from server.text.tokenizer import Tokenizer

# Below this the softmax is the arg-max, exact ties aside, and logits / temperature leaves the range of fp32.
GREEDY_BELOW = 1e-4
MAX_PROMPT_SCORES = 2 * 2**20  # log-probabilities of prompts in one answer

S = TypeVar("S", bound=Sampling)


def check_ids(ids: Iterable[int], context: ServerContext, param: str) -> None:
    """Refuse ids that are not in the model's vocabulary.

    Raises:
        InvalidRequest: names the first of them and the largest id.
    """
    size = context.info().vocab_size
    for i, token in enumerate(ids):
        if not 0 <= token < size:
            raise InvalidRequest(
                f"`{param}[{i}]` must be a token id of 0 to {size - 1}, got {token}", param=f"{param}[{i}]"
            )


def prompt_of(
    given: str | list[int],
    add_special_tokens: bool,
    context: ServerContext,
    param: str,
    encode: Encode,
    *,
    truncation: Truncation | None = None,
) -> TokenizedPrompt:
    """A text, which is then encoded, or ids as a prompt that fits the context, cut where the request asks for that.

    Raises:
        ContextExceeded: it is too long; with the limit and the size.
        InvalidRequest: it is empty, or holds an id outside the model's vocabulary.
    """
    if isinstance(given, str):
        ids = text_ids(given, add_special_tokens, context, param, encode)
        check_known(ids, context, param)
    else:
        ids = given
        check_ids(ids, context, param)
    if not ids:
        raise InvalidRequest(f"`{param}` must hold at least one token, got 0", param=param)
    kept = ids if truncation is None else truncation.cut(ids)
    check_count(kept, context, param)
    return TokenizedPrompt(kept, given if isinstance(given, str) and len(kept) == len(ids) else None, param)


def text_ids(text: str, add_special_tokens: bool, context: ServerContext, param: str, encode: Encode) -> list[int]:
    """The ids of a text, however many the bound on its bytes lets through.

    Raises:
        ContextExceeded: the text has too many bytes for its tokens to fit the context; it was not tokenized.
        InvalidRequest: it holds a NUL, for which the tokenizer has no token.
    """
    check_bytes(text, context, param)
    ids = encode(text, add_special_tokens)
    check_nul(text, ids, context.tokenizer, param)
    return ids


def check_nul(text: str, ids: Iterable[int], tokenizer: Tokenizer, param: str) -> None:
    """Some tokenizers drop a NUL, or take it for an unknown token; those that work on bytes have it.

    Raises:
        InvalidRequest: the text has one, and this tokenizer has no token for it.
    """
    nuls = text.count("\0")
    if nuls and sum(tokenizer.token_bytes(token).count(0) for token in ids) < nuls:
        raise InvalidRequest(
            f"`{param}` must not contain the NUL character: this model's tokenizer has no token for it", param=param
        )


def check_bytes(text: str, context: ServerContext, param: str) -> None:
    """Refuse a text of more bytes than a context full of the longest tokens could spell.

    Raises:
        ContextExceeded: with the limit and the size.
    """
    limit = context.info().context
    size = len(text.encode())
    if size <= limit:
        return
    longest = context.tokenizer.longest_token
    if size > limit * longest:
        raise ContextExceeded(
            f"`{param}` must have at most {limit * longest} bytes, {longest} (the longest token) for each of the {limit} "
            f"tokens of this server's context, got {size}",
            param=param,
        )


def check_count(ids: list[int], context: ServerContext, param: str) -> None:
    """Refuse more ids than the context has room for.

    Raises:
        ContextExceeded: with the limit and the count.
    """
    limit = context.info().context
    if len(ids) > limit:
        raise ContextExceeded(
            f"`{param}` must have at most {limit} tokens, the context of this server, got {len(ids)}", param=param
        )


def check_known(ids: list[int], context: ServerContext, param: str) -> None:
    """Refuse tokens that the model does not have: some tokenizers know more than their model, such as an added `[PAD]`.

    Raises:
        InvalidRequest: names the first of them and the largest id.
    """
    size = context.info().vocab_size
    if max(ids, default=0) >= size:
        token = next(token for token in ids if token >= size)
        spelled = context.tokenizer.token_text(token)
        raise InvalidRequest(
            f"`{param}` must hold only tokens of the model, ids 0 to {size - 1}, got {token} ({shown(spelled)})",
            param=param,
        )


def check_sequences(prompts: int, n: int, context: ServerContext) -> None:
    """Refuse more choices than an operator's bounds allow.

    Raises:
        InvalidRequest: with the limit and the two numbers.
    """
    most = max(context.settings.max_prompts, context.settings.max_n)
    if prompts * n > most:
        raise InvalidRequest(f"`n` times the number of prompts must be at most {most}, got {n} x {prompts}", param="n")


def check_shared(body: Sampling, context: ServerContext, tenant: Tenant) -> None:
    """Check the fields of every endpoint that generates, as far as they depend on each other or on the server's settings.

    Raises:
        InvalidRequest, UnsupportedField: with the field and the value.
        TaskNotServed: the model makes no text here.
    """
    check_task(context, OutputKind.TOKENS)
    check_beams(body)
    _check_stream_options(body)
    _check_deadline(body)
    _check_resumable(body, context.settings)
    check_priority(asked_priority(body), context.settings, tenant)
    _check_pin(body, context)


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


def _check_resumable(body: Sampling, settings: Settings) -> None:
    if not body.resumable:
        return
    if not settings.resume_seconds:
        raise UnsupportedField(
            "`resumable` must be false where no stream is kept for its client (resume_seconds is 0), got true",
            param="resumable",
        )
    if not body.stream:
        raise InvalidRequest("`resumable` needs `stream` to be true, got false", param="resumable")


def _check_deadline(body: Sampling) -> None:
    if body.deadline_ms is None and body.deadline_for != "first_token":
        raise InvalidRequest(
            f"`deadline_for` needs `deadline_ms`, got {body.deadline_for!r} without", param="deadline_for"
        )


def _deadline_of(body: Sampling, prompts: int) -> Deadline | None:
    if body.deadline_ms is None:
        return None
    if prompts > 1:
        raise InvalidRequest(f"`deadline_ms` is for a request of 1 prompt, got {prompts}", param="deadline_ms")
    return Deadline(body.deadline_ms / 1000, DeadlineFor(body.deadline_for))


def _check_pin(body: Sampling, context: ServerContext) -> None:
    if body.cache_pin_seconds and not context.settings.prefix_caching:
        raise UnsupportedField(
            f"`cache_pin_seconds` must be 0 where no prefixes are cached (--no-prefix-caching), got {body.cache_pin_seconds:g}",
            param="cache_pin_seconds",
        )


def asked_priority(body: Sampling | PooledBody) -> int | None:
    """What a request says of its priority; None: nothing."""
    return body.priority if "priority" in body.model_fields_set else None


def check_priority(priority: int | None, settings: Settings, tenant: Tenant) -> None:
    """Refuse a priority that would mean nothing.

    Raises:
        UnsupportedField: says why, and what would make it mean something.
        InvalidRequest: this tenant may not ask for one that high.
    """
    tenant.priority(priority)
    if not priority:
        return
    if settings.priority_scope == "none":
        why, fix = "on this server (priority_scope is none)", "start with --priority-scope tenant or all"
    elif settings.scheduling == "fcfs":
        why = "where requests are served in order of arrival (scheduling is fcfs)"
        fix = "start with --scheduling priority, fair or throughput"
    elif settings.scheduling == "throughput" and not outranks(tenant, settings):
        why = "for this API key (scheduling is throughput, which orders all requests by their prefixes)"
        fix = "name the key in --priority-keys, or start with --priority-scope all"
    else:
        return
    raise UnsupportedField(f"`priority` must be 0 {why}, got {priority}; {fix}", param="priority")


def with_room(
    prompts: list[TokenizedPrompt],
    asked: int | None,
    default: int | None,
    common: SamplingParams,
    context: ServerContext,
    *,
    field: str = "max_tokens",
    clipped: bool = False,
) -> list[SamplingParams]:
    """The settings of each prompt, with a `max_tokens` for which prompt and output fit the context.

    If the request `asked` for none, it is the operator's default or else the endpoint's (None: no bound), at most what the operator
    allows and what is left of the context. `field` is what the request asked in. `clipped`: what it asked for is a bound, and where
    the context has less room for it there is less.

    Raises:
        ContextExceeded: prompt and output do not fit together; with both numbers.
        InvalidRequest: `min_tokens` exceeds `max_tokens`.
    """
    limit = context.info().context
    bounds = (context.settings.default_max_tokens or default, context.settings.max_output_tokens, limit)
    unasked = min(bound for bound in bounds if bound is not None)
    settings: list[SamplingParams] = []
    for prompt in prompts:
        left = limit - len(prompt.ids)
        wanted = max(1, min(unasked, left)) if asked is None else max(1, min(asked, left)) if clipped else asked
        if wanted > left:
            raise ContextExceeded(
                f"prompt and output must have at most {limit} tokens together, the context of this server, "
                f"got {len(prompt.ids)} in `{prompt.param}` and {wanted} in `{field}`",
                param=prompt.param if asked is None else field,
            )
        if common.min_tokens > wanted:
            raise InvalidRequest(
                f"`min_tokens` must be at most `{field}`={wanted}, got {common.min_tokens}", param="min_tokens"
            )
        settings.append(replace(common, max_tokens=wanted))
    return settings


def sampling_of(body: Sampling, context: ServerContext) -> SamplingParams:
    """What all sequences of the request share; `max_tokens` and `seed` are set for each of them later.

    Raises:
        InvalidRequest: a token id outside the vocabulary, or a bad word without tokens.
    """
    check_ids(body.stop_token_ids, context, "stop_token_ids")
    check_ids(body.allowed_token_ids, context, "allowed_token_ids")
    _check_biased(body.logit_bias, context)
    # The smallest nucleus is one token.
    top_p, temperature = (body.top_p, body.temperature) if body.top_p else (1.0, 0.0)
    return SamplingParams(
        max_tokens=0,
        min_tokens=body.min_tokens,
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_k=max(0, body.top_k),
        top_p=top_p,
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=body.logit_bias,
        bad_words=_bad_words(body.bad_words, context.tokenizer),
        stop_token_ids=tuple(dict.fromkeys(body.stop_token_ids)),
        ignore_eos=body.ignore_eos,
        speculation=body.speculation,
        allowed_token_ids=tuple(dict.fromkeys(body.allowed_token_ids)),
    )


def _check_biased(tokens: Iterable[int], context: ServerContext) -> None:
    size = context.info().vocab_size
    unknown = [token for token in tokens if token >= size]
    if unknown:
        param = "logit_bias" if len(unknown) > 1 else f"logit_bias.{unknown[0]}"
        message = f"`{param}` must be named by a token id of 0 to {size - 1}, got {some(map(str, unknown))}"
        raise InvalidRequest(message, param=param)


def _bad_words(words: list[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Each word's tokens, both at the beginning of a text and after a space."""
    found: dict[tuple[int, ...], None] = {}
    for i, word in enumerate(words):
        for text in (word, f" {word.lstrip()}"):
            ids = tuple(tokenizer.encode(text, add_special_tokens=False))
            check_nul(text, ids, tokenizer, f"bad_words[{i}]")
            if not ids:
                raise InvalidRequest(f"`bad_words[{i}]` must hold at least one token, got 0", param=f"bad_words[{i}]")
            found[ids] = None
    return tuple(found)


def check_prompt_scores(prompts: Sequence[tuple[TokenizedPrompt, SamplingParams]], n: int) -> None:
    """No more log-probabilities of prompts than one answer may hold: each is some hundred bytes of it.

    Raises:
        InvalidRequest: with the limit and the number.
    """
    count = n * sum(
        len(prompt.ids) * (settings.prompt_logprobs + 1)
        for prompt, settings in prompts
        if settings.prompt_logprobs is not None
    )
    if count > MAX_PROMPT_SCORES:
        raise InvalidRequest(
            f"`prompt_logprobs` + 1, times the prompts' tokens, times `n`, must be at most {MAX_PROMPT_SCORES}, got {count}",
            param="prompt_logprobs",
        )


def text_job(
    prefix: str,
    model: str,
    body: S,
    prompts: Iterable[tuple[TokenizedPrompt, SamplingParams]],
    tenant: Tenant,
    *,
    context: ServerContext,
    continues: bool,
) -> TextJob[S]:
    """The job for these prompts, with `body.candidates` choices each; its id begins with `prefix`."""
    prompts = list(prompts)
    check_prompt_scores(prompts, body.candidates)
    job_id = f"{prefix}{uuid.uuid4().hex}"
    everybody, priority = outranks(tenant, context.settings), tenant.priority(asked_priority(body))
    sequences: list[SequenceRequest] = []
    for prompt, settings in prompts:
        for choice in range(body.candidates):
            index = len(sequences)
            request = AddRequest(
                request_id=f"{job_id}-{index}",
                prompt_ids=prompt.ids,
                sampling=replace(settings, seed=choice_seed(body.seed, choice)),
                priority=priority if everybody else 0,
                own_priority=0 if everybody else priority,
                cache_salt=tenant.salted(body.cache_salt),
                pin_seconds=body.cache_pin_seconds,
                tenant=tenant.name_for(body.user),
                weight=tenant.weight,
                beams=beams_of(body, f"{job_id}-{index - choice}", choice),
            )
            sequences.append(SequenceRequest(index, prompt, request))
    created = int(time.time())
    return TextJob(
        id=job_id,
        created=created,
        model=model,
        sequences=sequences,
        deadline=_deadline_of(body, len(prompts)),
        body=body,
        continues=continues,
        grammar=grammar_of(body),
    )


def choice_seed(seed: int | None, choice: int) -> int:
    """The seed of one choice: drawn if the client gave none, else the client's for the first and derived from it for the others.

    The prompt's position in a list does not count, so a prompt's text is the same alone and in a list.
    """
    if seed is None:
        return secrets.randbits(63)
    if choice == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
