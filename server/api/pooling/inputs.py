"""From texts to what the engine pools: tokens with the model's prompts before them, cut or refused where they are too long."""

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Encoding

from scheduler.types.messages import AddRequest
from scheduler.types.output_kind import OutputKind
from scheduler.types.sampling_params import SamplingParams
from server.api.context import ServerContext
from server.api.requests.validate import (
    asked_priority,
    check_bytes,
    check_count,
    check_ids,
    check_known,
    check_nul,
    check_priority,
)
from server.api.tenants import Tenant, outranks
from server.errors import ContextExceeded, InvalidRequest
from server.schema.pooling.bodies import PooledBody
from server.stream.job import SequenceRequest, TokenizedPrompt
from server.text.cutting import ModelInput, cut, special_tokens, whole

_NO_TOKENS = SamplingParams(max_tokens=0)


@dataclass(frozen=True, slots=True)
class Named:
    """One input: a text, a pair of texts or token ids, and the path of its field."""

    given: str | tuple[str, str] | list[int]
    param: str


@dataclass(frozen=True, slots=True)
class Cutting:
    """How long an input may be, and what is done about more.

    Attributes:
        most: tokens; None: nothing is cut.
        keep_end: whether the beginning is cut off.
    """

    most: int | None
    keep_end: bool

    @classmethod
    def of(cls, body: PooledBody, context: ServerContext) -> "Cutting":
        """What a request asks for.

        Raises:
            InvalidRequest: more tokens than the model takes, or none at all.
        """
        longest, asked = context.info().context, body.truncate_prompt_tokens
        if asked is not None and asked != -1 and not 1 <= asked <= longest:
            raise InvalidRequest(
                f"`truncate_prompt_tokens` must be -1 or 1 to {longest}, the context of this server, got {asked}",
                param="truncate_prompt_tokens",
            )
        if asked is None and body.truncate == "NONE":
            return cls(None, keep_end=False)
        return cls(longest if asked in (None, -1) else asked, keep_end=body.truncate == "START")


def model_inputs(
    named: Sequence[Named], cutting: Cutting, context: ServerContext, *, add_special_tokens: bool = True
) -> list[ModelInput]:
    """The tokens of each input.

    Raises:
        ContextExceeded: one is too long and is not to be cut; with the limit and the size.
        InvalidRequest: one is empty, or holds what is no token of the model.
    """
    if cutting.most is None:  # sizes first: they cost nothing
        for each in named:
            _check_size(each, context)
    texts = [each.given for each in named if not isinstance(each.given, list)]
    encodings = iter(context.tokenizer.inputs(texts, add_special_tokens))
    return [
        _of_ids(each, each.given, cutting, context)
        if isinstance(each.given, list)
        else _of_text(each, next(encodings), cutting, context)
        for each in named
    ]


def _check_size(each: Named, context: ServerContext) -> None:
    if isinstance(each.given, list):
        check_count(each.given, context, each.param)
    else:
        for text in [each.given] if isinstance(each.given, str) else each.given:
            check_bytes(text, context, each.param)


def _of_ids(each: Named, ids: list[int], cutting: Cutting, context: ServerContext) -> ModelInput:
    check_ids(ids, context, each.param)
    if cutting.most is not None:
        ids = ids[-cutting.most :] if cutting.keep_end else ids[: cutting.most]
    return ModelInput(ids)


def _of_text(each: Named, encoding: Encoding, cutting: Cutting, context: ServerContext) -> ModelInput:
    texts = [each.given] if isinstance(each.given, str) else each.given
    check_nul("".join(map(str, texts)), encoding.ids, context.tokenizer, each.param)
    found = whole(encoding)
    if cutting.most is not None and len(found.ids) > cutting.most:
        if cutting.most <= (around := special_tokens(encoding)):
            raise InvalidRequest(
                f"`truncate_prompt_tokens` must be more than the {around} special tokens around a text, got {cutting.most}",
                param="truncate_prompt_tokens",
            )
        found = cut(encoding, cutting.most, keep_end=cutting.keep_end)
    if len(found.ids) > (limit := context.info().context):
        raise ContextExceeded(
            f"`{each.param}` must have at most {limit} tokens, the context of this server, got {len(found.ids)}; "
            "`truncate` cuts it",
            param=each.param,
        )
    check_known(found.ids, context, each.param)
    if not found.ids or (not all(texts) and not special_tokens(encoding)):
        raise InvalidRequest(f"`{each.param}` must hold at least one token, got 0", param=each.param)
    return found


def sequences_of(
    job_id: str,
    inputs: Iterable[tuple[Named, ModelInput]],
    kind: OutputKind,
    *,
    body: PooledBody,
    tenant: Tenant,
    context: ServerContext,
) -> list[SequenceRequest]:
    """One sequence for each input.

    Raises:
        InvalidRequest, UnsupportedField: the request may not have its priority, or that means nothing here.
    """
    check_priority(asked_priority(body), context.settings, tenant)
    everybody, priority = outranks(tenant, context.settings), tenant.priority(asked_priority(body))
    return [
        SequenceRequest(
            index,
            TokenizedPrompt(found.ids, each.given if isinstance(each.given, str) else None, each.param),
            AddRequest(
                request_id=f"{job_id}-{index}",
                prompt_ids=found.ids,
                sampling=_NO_TOKENS,
                priority=priority if everybody else 0,
                own_priority=0 if everybody else priority,
                cache_salt=tenant.salted(""),
                tenant=tenant.name_for(body.user),
                weight=tenant.weight,
                produces=kind,
                pair_start=found.pair_start,
            ),
        )
        for index, (each, found) in enumerate(inputs)
    ]


def new_id(prefix: str) -> tuple[str, int]:
    """An id for an answer, and when it was made, in Unix seconds."""
    return f"{prefix}{uuid.uuid4().hex}", int(time.time())


def params_of(field: str, count: int) -> list[str]:
    """The paths of a field's entries; of its only one, its own."""
    return [field] if count == 1 else [f"{field}[{i}]" for i in range(count)]
