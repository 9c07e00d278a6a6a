"""`POST /v1/responses`: items of a conversation in, the items that come next out; and what a conversation counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.responses import Response

from server.api.answers.answer import ERRORS, STREAM, begun, streamed, whole
from server.api.chat import chat_ids, chat_job
from server.api.context import ServerContext
from server.api.dialects.parts import AnswerPart, JsonObject, added_up, encode
from server.api.dialects.responses_history import item_of, messages_of
from server.api.dialects.responses_writer import ResponseWriter, Store, wants_logprobs
from server.api.dialects.translation import chat_request, in_words_of
from server.api.dialects.truncation import fitting
from server.api.endpoint import Call, PostEndpoint, json_response
from server.api.tenants import ANYBODY, Tenant
from server.errors import InvalidRequest, ResponseNotFound, UnsupportedField
from server.schema.base import Body
from server.schema.dialects.choices import responses_choice_for_chat
from server.schema.dialects.responses import (
    FunctionToolSpec,
    PlainFormat,
    ResponseInput,
    ResponsesRequest,
    SchemaFormat,
    told,
)
from server.schema.dialects.responses_answers import InputTokenCount, ResponseAnswer
from server.schema.dialects.responses_items import ItemReference
from server.stream.background import EVENT_BYTES
from server.stream.event_log import EventLog, FollowedAnswer
from server.stream.job import TranslatedJob
from server.stream.response_store import StoredResponse, bytes_of
from server.telemetry.tenants import ANYBODYS

# What a refusal of the chat job is about, in the words of this API.
_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
}
_SAMPLING = (
    *("temperature", "top_p", "presence_penalty", "frequency_penalty", "top_k", "min_p", "seed", "stop"),
    *("stream", "user", "cache_salt"),
)


@dataclass(frozen=True, slots=True)
class ResponsesJob(TranslatedJob):
    """A valid request: what is computed, what was asked for, and the items that were asked with, with what these take."""

    body: ResponsesRequest
    asked: Sequence[Body]
    asked_bytes: int


def responses_job(body: ResponsesRequest, context: ServerContext, tenant: Tenant = ANYBODY) -> ResponsesJob:
    """The job of a request for a response.

    Raises:
        InvalidRequest, ContextExceeded, UnsupportedField, ModelNotFound: what is wrong, with limit and value.
        ResponseNotFound: the response to go on with is not stored, or the one of an item.
        Unavailable: no engine was ever ready.
    """
    _check_background(body, context)
    asked = _asked(body, context, tenant)
    with in_words_of(_NAMES):
        chat = chat_request(
            {
                **{name: getattr(body, name) for name in _SAMPLING},
                **_conversation(body, asked, body.max_output_tokens, context, tenant),
                "max_completion_tokens": body.max_output_tokens,
                "logprobs": wants_logprobs(body),
                "top_logprobs": (body.top_logprobs or 0) if wants_logprobs(body) else None,
            }
        )
        return ResponsesJob(
            chat_job(chat, context, tenant, prefix="resp_"), body, asked, bytes_of(asked) if body.store else 0
        )


def _check_background(body: ResponsesRequest, context: ServerContext) -> None:
    """What runs in the background is there to be asked for later."""
    if not body.background:
        return
    if not (context.responses.keeps and context.settings.max_background):
        why = "response_seconds is 0" if context.settings.max_background else "max_background is 0"
        raise UnsupportedField(f"`background` must be false on this server ({why}), got true", param="background")
    if not body.store:
        raise InvalidRequest("`background` needs `store` to be true, got false", param="background")


def token_count(body: ResponseInput, context: ServerContext, tenant: Tenant = ANYBODY) -> InputTokenCount:
    """The tokens of the prompt that would be made of a conversation.

    Raises:
        InvalidRequest, ContextExceeded, ModelNotFound, ResponseNotFound, Unavailable: as for a response.
    """
    context.model_name(body.model, tenant)
    with in_words_of(_NAMES):
        fields = _conversation(body, _asked(body, context, tenant), None, context, tenant)
        return InputTokenCount(input_tokens=len(chat_ids(chat_request(fields), context)))


def _conversation(
    body: ResponseInput, asked: Sequence[Body], room: int | None, context: ServerContext, tenant: Tenant
) -> Mapping[str, Any]:
    """The fields of a chat request that make its prompt, which leaves so much room for the output if it may be cut."""
    instructions = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    fields = {
        "model": body.model,
        "messages": [*instructions, *messages_of([*_history(body, context, tenant), *asked])],
        **_tools(body),
        "reasoning_effort": None if body.reasoning is None else body.reasoning.effort,
        "response_format": None if body.text is None else _response_format(body.text.format),
    }
    return fitting(fields, room, context) if body.truncation == "auto" else fields


def _asked(body: ResponseInput, context: ServerContext, tenant: Tenant) -> list[Body]:
    """The items that are asked with; a reference is the item that it refers to."""
    items: list[Body] = []
    for index, item in enumerate(body.input):
        try:
            items.append(context.responses.item(item.id, tenant.name) if isinstance(item, ItemReference) else item)
        except ResponseNotFound as error:
            error.param = f"input[{index}].id"
            raise
    return items


def _tools(body: ResponseInput) -> dict[str, Any]:
    functions = [told(tool) for tool in body.tools if isinstance(tool, FunctionToolSpec)]
    offered = [{"type": "function", "function": {k: v for k, v in each.items() if k != "type"}} for each in functions]
    choice = responses_choice_for_chat(body.tool_choice)
    return {"tools": offered, "tool_choice": choice, "parallel_tool_calls": body.parallel_tool_calls}


def _response_format(given: PlainFormat | SchemaFormat | None) -> dict[str, Any] | None:
    if not isinstance(given, SchemaFormat):
        return None if given is None else {"type": given.type}
    strict = bool(given.strict)
    return {"type": "json_schema", "json_schema": {"name": given.name, "schema": given.schema_, "strict": strict}}


def _store(job: ResponsesJob, call: Call, events: EventLog | None = None) -> Store | None:
    body, store, owner = job.body, call.context.responses, call.tenant.name
    if not (body.store and store.keeps and call.exchange.remembered):
        return None

    def keep(answer: JsonObject, parts: Sequence[AnswerPart]) -> None:
        given, previous = [item_of(part) for part in parts], body.previous_response_id
        kept = StoredResponse(
            owner=owner,
            answer=answer,
            asked=job.asked,
            asked_bytes=job.asked_bytes,
            given=given,
            previous=previous,
            events=events,
        )
        store.keep(kept)

    return keep


def _history(body: ResponseInput, context: ServerContext, tenant: Tenant) -> list[Any]:
    """The items of the responses that this one goes on with."""
    if body.previous_response_id is None:
        return []
    if context.background.find(body.previous_response_id, tenant.name) is not None:
        raise InvalidRequest(
            f"`previous_response_id` must be that of a response that has ended, got {body.previous_response_id!r}, which has not",
            param="previous_response_id",
        )
    try:
        chain = context.responses.chain(body.previous_response_id, tenant.name)
    except ResponseNotFound as error:
        error.param = "previous_response_id"
        raise
    return [item for each in chain for item in (*each.asked, *each.given)]


async def _answer(asked: ResponsesJob, call: Call) -> Response:
    if asked.body.background:
        return await _in_background(asked, call)
    with in_words_of(_NAMES):
        generation, _ = await begun(asked.job, call)
    make = partial(ResponseWriter, generation, asked.body, call.context.tokenizer, _store(asked, call))
    return await (streamed(generation, make, call) if asked.body.stream else whole(generation, added_up(make), call))


async def _in_background(asked: ResponsesJob, call: Call) -> Response:
    """What there is of the response at once, or its events as they come."""
    books, tenant = call.context.background, call.tenant
    events = EventLog(EVENT_BYTES) if asked.body.stream else None
    books.take_place()
    generation = None
    try:
        with in_words_of(_NAMES):
            generation, _ = await begun(asked.job, call)
        response = books.begin(
            tenant.name,
            generation,
            ResponseWriter(generation, asked.body, call.context.tokenizer, _store(asked, call, events)),
            asked.asked,
            events=events,
            exchange=call.exchange,
            counted_for=tenant.name_for(ANYBODYS),
        )
    except BaseException:
        books.give_back()
        if generation is not None:
            generation.close()
        raise
    if events is not None:
        return FollowedAnswer(events, -1, call.headers, response.unattended)
    return Response(encode(response.answer), media_type="application/json", headers=call.headers)


async def _count(answer: InputTokenCount, call: Call) -> Response:
    return json_response(answer, call.headers)


ENDPOINT = PostEndpoint(
    path="/v1/responses",
    tag="generate",
    summary="Answer a conversation, in items",
    operation="chat",
    stands_for_more=(b"previous_response_id", b"item_reference"),
    body=ResponsesRequest,
    validate=responses_job,
    answer=_answer,
    answers=ResponseAnswer,
    errors=ERRORS,
    content=STREAM,
    examples={"hello": {"value": {"input": "Say hello.", "max_output_tokens": 16}}},
)
COUNT = PostEndpoint(
    path="/v1/responses/input_tokens",
    tag="tokens",
    summary="How many tokens a conversation in items has",
    body=ResponseInput,
    validate=token_count,
    answer=_count,
    answers=InputTokenCount,
    errors=(400, 401, 404, 413, 415, 503),
    examples={"hello": {"value": {"input": "Say hello."}}},
)
