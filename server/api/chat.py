"""`POST /v1/chat/completions`: a conversation in, the next message out."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from server.api.answers.answer import ERRORS, STREAM, text_answer
from server.api.answers.formats import AnswerFormat, JsonObject
from server.api.answers.logprobs import chat_entries
from server.api.context import ServerContext
from server.api.endpoint import PostEndpoint
from server.api.requests.validate import check_shared, prompt_of, sampling_of, text_job, with_room
from server.api.tenants import ANYBODY, Tenant
from server.errors import InvalidRequest, for_clients
from server.schema.answers import ChatAnswer
from server.schema.chat import RESERVED, ChatRequest, Message
from server.stream.generation import Delta
from server.stream.job import TextJob
from server.text.chat_renderer import ChatRenderer
from server.text.chat_template import TemplateError
from server.text.tokenizer import Tokenizer


def chat_job(
    body: ChatRequest, context: ServerContext, tenant: Tenant = ANYBODY, prefix: str = "chatcmpl-"
) -> TextJob[ChatRequest]:
    """The job of a chat request; its id begins with `prefix`.

    Raises:
        InvalidRequest, ContextExceeded, UnsupportedField, ModelNotFound: what is wrong, with limit and value.
        Unavailable: no engine was ever ready.
    """
    model = context.model_name(body.model, tenant)
    check_shared(body, context, tenant)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest(
            f"`top_logprobs` needs `logprobs` to be true, got {body.top_logprobs}", param="top_logprobs"
        )
    chat = renderer_of(context)
    text = render(
        chat, body.messages, body.add_generation_prompt, body.continue_final_message, body.chat_template_kwargs
    )
    prompt = prompt_of(text, False, context, "messages", chat.encode)
    common = replace(
        sampling_of(body, context),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
    )
    field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    settings = with_room([prompt], _chat_max_tokens(body), None, common, context, field=field)
    pairs = [(prompt, settings[0])]
    return text_job(prefix, model, body, pairs, tenant, context=context, continues=body.continue_final_message)


def renderer_of(context: ServerContext) -> ChatRenderer:
    """What makes prompts of conversations.

    Raises:
        InvalidRequest: the model has no template.
    """
    if context.chat is None:
        raise InvalidRequest("The model has no chat template; use /v1/completions, or start with --chat-template")
    return context.chat


def render(
    chat: ChatRenderer, messages: list[Message], add: bool | None, continue_final: bool, kwargs: dict[str, Any]
) -> str:
    """The prompt text of a conversation.

    Raises:
        InvalidRequest: the fields contradict each other, or the template refuses the conversation.
    """
    if add and continue_final:
        message = "`add_generation_prompt` and `continue_final_message` exclude each other, got both"
        raise InvalidRequest(message, param="add_generation_prompt")
    reserved = RESERVED & kwargs.keys()
    if reserved:
        name = min(reserved)
        raise InvalidRequest(f"`chat_template_kwargs` must not hold `{name}`", param=f"chat_template_kwargs.{name}")
    try:
        return chat.render(
            [_for_template(message) for message in messages],
            add_generation_prompt=not continue_final if add is None else add,
            continue_final_message=continue_final,
            **kwargs,
        )
    except TemplateError as error:
        raise InvalidRequest(
            f"The chat template refuses `messages`: {for_clients(str(error))}", param="messages"
        ) from None


def _for_template(message: Message) -> dict[str, Any]:
    # Templates of the served architectures do not know "developer", OpenAI's newer name for the system role.
    role = "system" if message.role == "developer" else message.role
    named = {} if message.name is None else {"name": message.name}
    return {"role": role, "content": message.content, **named}


def _chat_max_tokens(body: ChatRequest) -> int | None:
    given = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(given) > 1:
        raise InvalidRequest(
            "`max_completion_tokens` must equal `max_tokens` where both are given, "
            f"got {body.max_completion_tokens} and {body.max_tokens}",
            param="max_completion_tokens",
        )
    return given.pop() if given else None


class ChatFormat(AnswerFormat[ChatRequest]):
    """`/v1/chat/completions`."""

    chunk_object = "chat.completion.chunk"
    answer_object = "chat.completion"

    def __init__(self, job: TextJob[ChatRequest], tokenizer: Tokenizer) -> None:
        super().__init__(job, tokenizer)
        self._most = (job.body.top_logprobs or 0) if job.body.logprobs else None

    def opening(self, delta: Delta) -> Iterator[JsonObject]:
        """The role."""
        role = {"role": "assistant", "content": ""}
        yield {"index": delta.index, "delta": role, "logprobs": None, "finish_reason": None}

    def chunks(self, delta: Delta) -> Iterator[JsonObject]:
        """Text, and for the end a chunk of its own, with an empty delta, as at OpenAI."""
        ids, logprobs = self.token_ids(delta), self._logprobs(delta)
        if delta.text or (delta.token_ids and (ids or logprobs)):
            content = {"content": delta.text}
            yield {"index": delta.index, "delta": content, "logprobs": logprobs, "finish_reason": None, **ids}
        if delta.finish_reason is not None:
            ends = {"finish_reason": delta.finish_reason, "stop_reason": delta.stop_reason}
            yield {"index": delta.index, "delta": {}, "logprobs": None, **ends}

    def whole(self, delta: Delta) -> JsonObject:
        """The message."""
        return {
            "index": delta.index,
            "message": {"role": "assistant", "content": delta.text, "refusal": None},
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
            **self.token_ids(delta),
            **self.extras(delta),
        }

    def _logprobs(self, delta: Delta) -> JsonObject | None:
        return None if self._most is None else chat_entries(delta.logprobs, self._most, self.tokenizer)


ENDPOINT = PostEndpoint(
    path="/v1/chat/completions",
    tag="generate",
    summary="Answer a conversation",
    operation="chat",
    body=ChatRequest,
    validate=chat_job,
    answer=text_answer(ChatFormat),
    answers=ChatAnswer,
    errors=ERRORS,
    content=STREAM,
    examples={"hello": {"value": {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}}},
)
