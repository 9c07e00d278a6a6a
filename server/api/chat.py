"""`POST /v1/chat/completions`: a conversation in, the next message out."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from scheduler.types.messages import FinishReason
from server.api.answers.answer import ERRORS, STREAM, text_answer
from server.api.answers.formats import AnswerFormat, JsonObject
from server.api.answers.logprobs import chat_entries
from server.api.context import ServerContext
from server.api.endpoint import PostEndpoint
from server.api.requests.tools import NO_TOOLS, ToolUse, for_template, message_grammar, tool_use
from server.api.requests.truncation import truncation_of
from server.api.requests.validate import (
    check_count,
    check_shared,
    prompt_of,
    sampling_of,
    text_ids,
    text_job,
    with_room,
)
from server.api.tenants import ANYBODY, Tenant
from server.errors import InvalidRequest, UnsupportedField, for_clients
from server.schema.answers import ChatAnswer
from server.schema.chat import RESERVED, ChatRequest, Message
from server.stream.generation import Delta
from server.stream.job import TextJob
from server.text.chat_renderer import ChatRenderer
from server.text.chat_template import TemplateError
from server.text.formats.tool_formats import ReasoningFormat
from server.text.message_parser import CallArguments, CallBegin, MessageDelta, MessageForm, Reasoning, Text
from server.text.tokenizer import Tokenizer


def chat_job(
    body: ChatRequest,
    context: ServerContext,
    tenant: Tenant = ANYBODY,
    *,
    prefix: str = "chatcmpl-",
    clipped: bool = False,
) -> TextJob[ChatRequest]:
    """The job of a chat request; its id begins with `prefix`. `clipped`: `max_tokens` may exceed the room that the context has.

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
    chat, use = renderer_of(context), tool_use(body)
    text = _chat_text(body, chat, use)
    continued = "".join(body.messages[-1].content) if body.continue_final_message else None
    form = chat.message_form(text, use.parameters(), continued)
    asked = _chat_max_tokens(body)
    truncation = truncation_of(body, asked, context)
    encode = partial(chat.encode, salt=tenant.salted(body.cache_salt))
    prompt = prompt_of(text, False, context, "messages", encode, truncation=truncation)
    common = replace(
        sampling_of(body, context),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        prediction_ids=_predicted(body, context),
        **thinking_bound(body, form, context.tokenizer),
    )
    field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    settings = with_room([prompt], asked, None, common, context, field=field, clipped=clipped)
    pairs = [(prompt, settings[0])]
    job = text_job(prefix, model, body, pairs, tenant, context=context, continues=body.continue_final_message)
    job.form = form
    job.grammar = message_grammar(form, use, job.grammar, context)
    return job


def _predicted(body: ChatRequest, context: ServerContext) -> tuple[int, ...]:
    """The tokens of the request's prediction, if guesses are made from it: each choice takes them along.

    Raises:
        InvalidRequest, ContextExceeded: as `text_ids`.
    """
    if body.prediction is None:
        return ()
    field = "prediction.content"
    ids = text_ids("".join(body.prediction.content), False, context, field, context.tokenizer.encode)
    check_count(ids, context, field)
    info = context.info()
    used = body.speculation and info.reads_predictions and body.n * len(ids) <= info.context
    return tuple(ids) if used else ()


def thinking_variables(body: ChatRequest, chat: ChatRenderer) -> dict[str, Any]:
    """What the body says of thinking, in the variables that the chat template reads.

    Raises:
        UnsupportedField: it reads none of them.
    """
    effort, asked = body.reasoning_effort, body.enable_thinking
    if effort is None and asked is None:
        return {}
    thinks = asked if asked is not None else effort != "none"
    given = {"reasoning_effort": effort, "enable_thinking": thinks, "thinking": thinks}
    read = {name: value for name, value in given.items() if value is not None and chat.reads(name)}
    if not read and thinks:
        field, value = ("enable_thinking", "true") if effort is None else ("reasoning_effort", f'"{effort}"')
        raise UnsupportedField(
            f"`{field}` is not served for this model, whose chat template has no variable for it, got {value}",
            param=field,
        )
    return read


def thinking_bound(body: ChatRequest, form: MessageForm | None, tokenizer: Tokenizer) -> dict[str, Any]:
    """Fields of `SamplingParams` that bound the reasoning.

    Raises:
        UnsupportedField: the model does not think first, or its tags are no tokens.
    """
    budget, field = body.thinking_token_budget, "thinking_token_budget"
    if budget is None:
        return {}
    if form is None or form.reasoning is None:
        raise UnsupportedField(
            f"`{field}` is not served for a model that does not think first, got {budget}", param=field
        )
    tags = thinking_tags(form.reasoning, tokenizer)
    if tags is None:
        raise UnsupportedField(
            f"`{field}` is not served for a model whose tags are no tokens, got {budget}", param=field
        )
    return {"thinking_tokens": budget, "think_begin": None if form.thinks else tags[0], "think_end": tags[1]}


def thinking_tags(reasoning: ReasoningFormat | None, tokenizer: Tokenizer) -> tuple[int, int] | None:
    """The tokens between which a model thinks, by which that can be bounded; None: it does not, or its tags are no tokens."""
    if reasoning is None:
        return None
    begin, end = (tokenizer.encode(tag, add_special_tokens=False) for tag in (reasoning.begin, reasoning.end))
    return (begin[0], end[0]) if len(begin) == len(end) == 1 else None


def _chat_text(body: ChatRequest, chat: ChatRenderer, use: ToolUse) -> str:
    variables = thinking_variables(body, chat) | body.chat_template_kwargs
    return render(chat, body.messages, body.add_generation_prompt, body.continue_final_message, variables, use=use)


def chat_ids(body: ChatRequest, context: ServerContext) -> list[int]:
    """The tokens of a chat request's prompt, whether or not they fit the context.

    Raises:
        InvalidRequest, ContextExceeded: as `render` and `text_ids`.
    """
    chat = renderer_of(context)
    return text_ids(_chat_text(body, chat, tool_use(body)), False, context, "messages", chat.encode)


def renderer_of(context: ServerContext) -> ChatRenderer:
    """What makes prompts of conversations.

    Raises:
        InvalidRequest: the model has no template.
    """
    if context.chat is None:
        raise InvalidRequest("The model has no chat template; use /v1/completions, or start with --chat-template")
    return context.chat


def render(
    chat: ChatRenderer,
    messages: list[Message],
    add: bool | None,
    continue_final: bool,
    kwargs: dict[str, Any],
    *,
    use: ToolUse = NO_TOOLS,
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
            [for_template(message) for message in messages],
            use.for_template(),
            add_generation_prompt=not continue_final if add is None else add,
            continue_final_message=continue_final,
            **kwargs,
        )
    except TemplateError as error:
        raise InvalidRequest(
            f"The chat template refuses `messages`: {for_clients(str(error))}", param="messages"
        ) from None


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
        ids, logprobs = self.token_ids(delta), self.logprobs(delta)
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
            "logprobs": self.logprobs(delta),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
            **self.token_ids(delta),
            **self.extras(delta),
        }

    def logprobs(self, delta: Delta) -> JsonObject | None:
        """The log-probabilities of the delta's tokens, where asked for."""
        return None if self._most is None else chat_entries(delta.logprobs, self._most, self.tokenizer, self.spell)


def chat_format(job: TextJob[ChatRequest], tokenizer: Tokenizer) -> ChatFormat:
    """How the answer to a chat request is written."""
    return ChatFormat(job, tokenizer) if job.form is None else ReadChatFormat(job, tokenizer)


class ReadChatFormat(ChatFormat):
    """`/v1/chat/completions`, where the text is read as reasoning, text and calls of tools."""

    def __init__(self, job: TextJob[ChatRequest], tokenizer: Tokenizer) -> None:
        super().__init__(job, tokenizer)
        self._older = bool(job.body.functions)
        self._reasons = job.body.include_reasoning
        self._calling: set[int] = set()  # choices that have called

    def chunks(self, delta: Delta) -> Iterator[JsonObject]:
        """A chunk for each event; token ids and log-probabilities with the first of those that tokens bring."""
        extra: JsonObject = {"logprobs": self.logprobs(delta), "finish_reason": None, **self.token_ids(delta)}
        written = [each for event in delta.events if (each := self._written(event)) is not None]
        if not written and delta.token_ids and (extra["logprobs"] or "token_ids" in extra):
            written = [{}]
        for gained in written:
            yield {"index": delta.index, "delta": gained, **extra}
            extra = {"logprobs": None, "finish_reason": None}
        self._note_calls(delta)
        if delta.finish_reason is not None:
            ends = {"finish_reason": self._reason(delta), "stop_reason": delta.stop_reason}
            yield {"index": delta.index, "delta": {}, "logprobs": None, **ends}

    def whole(self, delta: Delta) -> JsonObject:
        """The message, put together of all events."""
        self._note_calls(delta)
        choice = super().whole(delta)
        choice["finish_reason"] = self._reason(delta)
        choice["message"] = message_of(delta.events, older=self._older, reasons=self._reasons)
        return choice

    def _note_calls(self, delta: Delta) -> None:
        if any(isinstance(event, CallBegin) for event in delta.events):
            self._calling.add(delta.index)

    def _reason(self, delta: Delta) -> str | None:
        if delta.index in self._calling and delta.finish_reason is FinishReason.STOP:
            return "function_call" if self._older else "tool_calls"
        return delta.finish_reason

    def _written(self, event: MessageDelta) -> JsonObject | None:
        match event:
            case Text(text):
                return {"content": text}
            case Reasoning(text):
                return {"reasoning_content": text, "reasoning": text} if self._reasons else None
            case CallBegin(index, call_id, name):
                function = {"name": name, "arguments": ""}
                if self._older:
                    return {"function_call": function} if index == 0 else None
                return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
            case CallArguments(index, text):
                if self._older:
                    return {"function_call": {"arguments": text}} if index == 0 else None
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def message_of(events: Iterable[MessageDelta], *, older: bool, reasons: bool) -> JsonObject:
    """The message that events add up to, as `AnswerMessage`."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[tuple[CallBegin, list[str]]] = []
    for event in events:
        match event:
            case Text(text):
                texts.append(text)
            case Reasoning(text):
                thoughts.append(text)
            case CallBegin():
                calls.append((event, []))
            case CallArguments(index, text):
                calls[index][1].append(text)
    content, thought = "".join(texts), "".join(thoughts)
    message: JsonObject = {
        "role": "assistant",
        "content": content if content or not (calls or thought) else None,
        "refusal": None,
    }
    if thought and reasons:
        message |= {"reasoning_content": thought, "reasoning": thought}
    functions = [{"name": call.name, "arguments": "".join(arguments)} for call, arguments in calls]
    if functions and older:
        message["function_call"] = functions[0]
    elif functions:
        pairs = zip(calls, functions, strict=True)
        message["tool_calls"] = [{"id": call.id, "type": "function", "function": each} for (call, _), each in pairs]
    return message


ENDPOINT = PostEndpoint(
    path="/v1/chat/completions",
    tag="generate",
    summary="Answer a conversation",
    operation="chat",
    body=ChatRequest,
    validate=chat_job,
    answer=text_answer(chat_format),
    answers=ChatAnswer,
    errors=ERRORS,
    content=STREAM,
    examples={"hello": {"value": {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}}},
)
