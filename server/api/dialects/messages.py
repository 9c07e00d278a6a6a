"""`POST /v1/messages`, Anthropic's API: a conversation in, the assistant's next message out; and what a conversation counts."""

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.responses import Response

from server.api.answers.answer import ERRORS, STREAM, begun, streamed, whole
from server.api.chat import chat_ids, chat_job, thinking_tags
from server.api.context import ServerContext
from server.api.dialects.messages_history import chat_messages
from server.api.dialects.messages_writer import MessageWriter, anthropic_error
from server.api.dialects.parts import added_up
from server.api.dialects.translation import chat_content, chat_request, in_words_of
from server.api.endpoint import Call, PostEndpoint, json_response
from server.api.tenants import ANYBODY, Tenant
from server.schema.dialects.choices import messages_choice_for_chat
from server.schema.dialects.messages import ClientTool, CountTokensRequest, MessagesRequest, OutputFormat
from server.schema.dialects.messages_answers import MessageAnswer, MessagesErrorAnswer, TokenCountAnswer
from server.stream.job import TranslatedJob

# What a refusal of the chat job is about, in the words of this API.
_NAMES = {
    "stop": "stop_sequences",
    "user": "metadata.user_id",
    "thinking_token_budget": "thinking.budget_tokens",
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
}

# What Claude Code writes in front of its instructions for Anthropic's accounts. It is another in each turn, so that no two turns
# would have a prefix in common, and it tells the model nothing.
_BILLING = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n?")


@dataclass(frozen=True, slots=True)
class MessagesJob(TranslatedJob):
    """A valid request: what is computed, and whether the context has less room than was asked for."""

    clipped: bool


def messages_job(body: MessagesRequest, context: ServerContext, tenant: Tenant = ANYBODY) -> MessagesJob:
    """The job of a request for a message.

    Raises:
        InvalidRequest, ContextExceeded, UnsupportedField, ModelNotFound: what is wrong, with limit and value.
        Unavailable: no engine was ever ready.
    """
    chat = chat_request(
        {
            **conversation(body, context),
            "max_tokens": body.max_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "stop": body.stop_sequences or None,
            "stream": body.stream,
            "user": None if body.metadata is None else body.metadata.user_id,
        }
    )
    with in_words_of(_NAMES):
        job = chat_job(chat, context, tenant, prefix="msg_", clipped=True)
    return MessagesJob(job, job.sequences[0].request.sampling.max_tokens < body.max_tokens)


def conversation(body: CountTokensRequest, context: ServerContext) -> dict[str, Any]:
    """The fields of a chat request that make its prompt, and say how its answer is read."""
    instructions = [text for block in body.system if (text := _BILLING.sub("", block.text))]
    system = [{"role": "system", "content": chat_content(instructions)}] if instructions else []
    told = (chat_messages(message, f"messages[{number}]") for number, message in enumerate(body.messages))
    messages = [each for several in told for each in several]
    output = body.output_config
    return {
        "model": body.model,
        "messages": system + messages,
        "continue_final_message": messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1],
        "tools": [_tool(tool) for tool in body.tools],
        **messages_choice_for_chat(body.tool_choice),
        **_thinking(body, context),
        "response_format": None if output is None or output.format is None else _response_format(output.format),
    }


def _tool(tool: ClientTool) -> dict[str, Any]:
    described = {"description": tool.description} if tool.description else {}
    function = {"name": tool.name, **described, "parameters": tool.input_schema, "strict": tool.strict}
    return {"type": "function", "function": function}


def _thinking(body: CountTokensRequest, context: ServerContext) -> dict[str, Any]:
    """What can be said of thinking to this model, which is nothing to one that does not: clients ask every model to think."""
    said: dict[str, Any] = {}
    chat, thinking = context.chat, body.thinking
    if chat is None:
        return said
    kind = None if thinking is None else thinking.type
    if kind in ("enabled", "disabled") and (chat.reads("enable_thinking") or chat.reads("thinking")):
        said["enable_thinking"] = kind == "enabled"
    if thinking is not None and kind == "enabled" and thinking_tags(chat.reasoning, context.tokenizer) is not None:
        said["thinking_token_budget"] = thinking.budget_tokens
    effort = None if body.output_config is None else body.output_config.effort
    if effort is not None and chat.reads("reasoning_effort"):
        said["reasoning_effort"] = "xhigh" if effort == "max" else effort
    return said


def _response_format(given: OutputFormat) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": given.schema_, "strict": True}}


def token_count(body: CountTokensRequest, context: ServerContext, tenant: Tenant = ANYBODY) -> TokenCountAnswer:
    """The tokens of the prompt that would be made of a conversation.

    Raises:
        InvalidRequest, ContextExceeded, ModelNotFound, Unavailable: as for a message.
    """
    context.model_name(body.model, tenant)
    with in_words_of(_NAMES):
        return TokenCountAnswer(input_tokens=len(chat_ids(chat_request(conversation(body, context)), context)))


async def _answer(asked: MessagesJob, call: Call) -> Response:
    with in_words_of(_NAMES):
        generation, _ = await begun(asked.job, call)
    make = partial(MessageWriter, generation, call.exchange.request_id, asked.clipped)
    return await (
        streamed(generation, make, call) if asked.job.body.stream else whole(generation, added_up(make), call)
    )


async def _count(answer: TokenCountAnswer, call: Call) -> Response:
    return json_response(answer, call.headers)


_HELLO = {"messages": [{"role": "user", "content": "Say hello."}]}
_VERSION = {
    "name": "anthropic-version",
    "in": "header",
    "schema": {"type": "string"},
    "description": "Any: there is one version here.",
}

ENDPOINTS = (
    PostEndpoint(
        path="/v1/messages",
        tag="generate",
        summary="Answer a conversation, as Anthropic's API does",
        operation="chat",
        body=MessagesRequest,
        validate=messages_job,
        answer=_answer,
        answers=MessageAnswer,
        errors=ERRORS,
        content=STREAM,
        examples={"hello": {"value": {**_HELLO, "max_tokens": 16}}},
        parameters=(_VERSION,),
        error_body=anthropic_error,
        error_answer=MessagesErrorAnswer,
    ),
    PostEndpoint(
        path="/v1/messages/count_tokens",
        tag="tokens",
        summary="How many tokens a conversation of Anthropic's API has",
        body=CountTokensRequest,
        validate=token_count,
        answer=_count,
        answers=TokenCountAnswer,
        errors=(400, 401, 404, 413, 415, 503),
        examples={"hello": {"value": _HELLO}},
        parameters=(_VERSION,),
        error_body=anthropic_error,
        error_answer=MessagesErrorAnswer,
    ),
)
