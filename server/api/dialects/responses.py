"""`POST /v1/responses`: items of a conversation in, the items that come next out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.responses import Response

from server.api.answers.answer import ERRORS, STREAM, begun, streamed, whole
from server.api.chat import chat_job
from server.api.context import ServerContext
from server.api.dialects.parts import AnswerPart, JsonObject, added_up
from server.api.dialects.responses_history import item_of, messages_of
from server.api.dialects.responses_writer import ResponseWriter, Store, wants_logprobs
from server.api.dialects.translation import chat_request, in_words_of
from server.api.endpoint import Call, PostEndpoint
from server.api.tenants import ANYBODY, Tenant
from server.errors import ResponseNotFound
from server.schema.dialects.choices import responses_choice_for_chat
from server.schema.dialects.responses import FunctionToolSpec, PlainFormat, ResponsesRequest, SchemaFormat, told
from server.schema.dialects.responses_answers import ResponseAnswer
from server.stream.job import TranslatedJob
from server.stream.response_store import StoredResponse

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
    *("stream", "user", "cache_salt", "model"),
)


@dataclass(frozen=True, slots=True)
class ResponsesJob(TranslatedJob):
    """A valid request: what is computed, and what was asked for."""

    body: ResponsesRequest


def responses_job(body: ResponsesRequest, context: ServerContext, tenant: Tenant = ANYBODY) -> ResponsesJob:
    """The job of a request for a response.

    Raises:
        InvalidRequest, ContextExceeded, UnsupportedField, ModelNotFound: what is wrong, with limit and value.
        ResponseNotFound: the response to go on with is not stored.
        Unavailable: no engine was ever ready.
    """
    instructions = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    chat = chat_request(
        {
            **{name: getattr(body, name) for name in _SAMPLING},
            "messages": [*instructions, *messages_of([*_history(body, context, tenant), *body.input])],
            "max_completion_tokens": body.max_output_tokens,
            **_tools(body),
            "reasoning_effort": None if body.reasoning is None else body.reasoning.effort,
            "response_format": None if body.text is None else _response_format(body.text.format),
            "logprobs": wants_logprobs(body),
            "top_logprobs": (body.top_logprobs or 0) if wants_logprobs(body) else None,
        }
    )
    with in_words_of(_NAMES):
        return ResponsesJob(chat_job(chat, context, tenant, prefix="resp_"), body)


def _tools(body: ResponsesRequest) -> dict[str, Any]:
    functions = [told(tool) for tool in body.tools if isinstance(tool, FunctionToolSpec)]
    offered = [{"type": "function", "function": {k: v for k, v in each.items() if k != "type"}} for each in functions]
    choice = responses_choice_for_chat(body.tool_choice)
    return {"tools": offered, "tool_choice": choice, "parallel_tool_calls": body.parallel_tool_calls}


def _response_format(given: PlainFormat | SchemaFormat | None) -> dict[str, Any] | None:
    if not isinstance(given, SchemaFormat):
        return None if given is None else {"type": given.type}
    strict = bool(given.strict)
    return {"type": "json_schema", "json_schema": {"name": given.name, "schema": given.schema_, "strict": strict}}


def _store(body: ResponsesRequest, call: Call) -> Store | None:
    store, owner = call.context.responses, call.tenant.name
    if not (body.store and store.keeps):
        return None

    def keep(answer: JsonObject, parts: Sequence[AnswerPart]) -> None:
        given, previous = [item_of(part) for part in parts], body.previous_response_id
        store.keep(StoredResponse(owner=owner, answer=answer, asked=body.input, given=given, previous=previous))

    return keep


def _history(body: ResponsesRequest, context: ServerContext, tenant: Tenant) -> list[Any]:
    """The items of the responses that this one goes on with."""
    if body.previous_response_id is None:
        return []
    try:
        chain = context.responses.chain(body.previous_response_id, tenant.name)
    except ResponseNotFound as error:
        error.param = "previous_response_id"
        raise
    return [item for each in chain for item in (*each.asked, *each.given)]


async def _answer(asked: ResponsesJob, call: Call) -> Response:
    with in_words_of(_NAMES):
        generation, _ = await begun(asked.job, call)
    make = partial(ResponseWriter, generation, asked.body, call.context.tokenizer, _store(asked.body, call))
    return await (streamed(generation, make, call) if asked.body.stream else whole(generation, added_up(make), call))


ENDPOINT = PostEndpoint(
    path="/v1/responses",
    tag="generate",
    summary="Answer a conversation, in items",
    operation="chat",
    body=ResponsesRequest,
    validate=responses_job,
    answer=_answer,
    answers=ResponseAnswer,
    errors=ERRORS,
    content=STREAM,
    examples={"hello": {"value": {"input": "Say hello.", "max_output_tokens": 16}}},
)
