"""The events of a response, and the response itself.

Sources: https://platform.openai.com/docs/api-reference/responses-streaming, https://www.openresponses.org/specification.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from scheduler.types.messages import FinishReason
from scheduler.types.step import TokenLogprobs
from server.api.answers.formats import DONE, usage
from server.api.answers.logprobs import chat_entries
from server.api.dialects.parts import AnswerPart, Event, EventWriter, JsonObject, PartKind
from server.errors import ApiError
from server.schema.dialects.responses import ENCRYPTED, LOGPROBS, FunctionToolSpec, ResponsesRequest, told
from server.schema.dialects.responses_items import sealed_text
from server.stream.generation import Generation
from server.text.tokenizer import Tokenizer

_PREFIXES = {PartKind.REASONING: "rs", PartKind.TEXT: "msg", PartKind.CALL: "fc"}
_TYPES = {PartKind.REASONING: "reasoning", PartKind.TEXT: "message", PartKind.CALL: "function_call"}
_EVENTS = {
    PartKind.REASONING: "response.reasoning_text",
    PartKind.TEXT: "response.output_text",
    PartKind.CALL: "response.function_call_arguments",
}


def item_id(prefix: str) -> str:
    """An id that no other item has."""
    return f"{prefix}_{uuid.uuid4().hex}"


Store = Callable[[JsonObject, Sequence[AnswerPart]], None]


class ResponseWriter(EventWriter):
    """One response on its way. Each part is an item. `store` gets it when it has ended, with its parts."""

    def __init__(
        self, generation: Generation, body: ResponsesRequest, tokenizer: Tokenizer, store: Store | None
    ) -> None:
        super().__init__(generation)
        self._store = store
        self._body = body
        self._tokenizer = tokenizer
        self._head = response_head(generation, body, stored=store is not None)
        self._number = -1
        self._ids: list[str] = []
        self._items: list[JsonObject] = []

    def written(self, event: Event) -> bytes:
        """An event, with its type and its number."""
        name, data = event
        self._number += 1
        return super().written((name, {"type": name, "sequence_number": self._number, **data}))

    def begun(self) -> Iterator[Event]:
        """There is a response, and it is being made."""
        response = self.so_far("in_progress")
        if self._number < 0:
            yield "response.created", {"response": response}
        yield "response.in_progress", {"response": response}

    def queued(self) -> list[bytes]:
        """There is a response, and it waits."""
        response = self.so_far("queued")
        return [self.written((f"response.{name}", {"response": response})) for name in ("created", "queued")]

    def opened(self, part: AnswerPart) -> Iterator[Event]:
        """An item, and the one part of its content, if it has any."""
        self._ids.append(item_id(_PREFIXES[part.kind]))
        yield "response.output_item.added", {"output_index": part.index, "item": self._item(part, "in_progress", [])}
        if part.kind is not PartKind.CALL:
            yield "response.content_part.added", {**self._place(part), "part": _content(part.kind, "", [])}

    def grown(self, part: AnswerPart, text: str, logprobs: list[TokenLogprobs]) -> Iterator[Event]:
        """More of it."""
        spoken = {"logprobs": self._entries(logprobs)} if part.kind is PartKind.TEXT else {}
        yield f"{_EVENTS[part.kind]}.delta", {**self._place(part), "delta": text, **spoken}

    def closed(self, part: AnswerPart) -> Iterator[Event]:
        """The whole of it, up to three times, as clients of each kind look for it."""
        text, logprobs = part.text, self._entries(part.logprobs)
        cut = self._is_cut and self.finish_reason is not None
        content = _content(part.kind, text, logprobs)
        item = self._item(part, "incomplete" if cut else "completed", [content])
        self._items.append(item)
        if part.kind is PartKind.CALL:
            yield f"{_EVENTS[part.kind]}.done", {**self._place(part), "name": part.name, "arguments": text}
        else:
            spoken = {"logprobs": logprobs} if part.kind is PartKind.TEXT else {}
            yield f"{_EVENTS[part.kind]}.done", {**self._place(part), "text": text, **spoken}
            yield "response.content_part.done", {**self._place(part), "part": content}
        yield "response.output_item.done", {"output_index": part.index, "item": item}

    def answer(self) -> JsonObject:
        """The response."""
        status = "incomplete" if self._is_cut else "completed"
        response = self.so_far(status) | {
            "completed_at": None if self._is_cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if self._is_cut else None,
            "usage": response_usage(usage(self.generation)),
        }
        self._keep(response)
        return response

    def end(self) -> bytes:
        """The response once more, as a whole."""
        response = self.answer()
        return self.written((f"response.{response['status']}", {"response": response})) + DONE

    def failed(self, error: ApiError) -> bytes:
        """The response as far as it came, and what went wrong."""
        response = self.so_far("failed") | {"error": {"code": _error_code(error), "message": error.message}}
        if self._body.background:
            self._keep(response)
        return self.written(("response.failed", {"response": response})) + DONE

    def cancelled(self) -> bytes:
        """The response as far as it came. No event that clients know is nearer to it; its status says what happened."""
        response = self.so_far("cancelled")
        self._keep(response)
        return self.written(("response.incomplete", {"response": response})) + DONE

    def so_far(self, status: str) -> JsonObject:
        """The response, with the items that are complete."""
        return {**self._head, "status": status, "output": list(self._items)}

    @property
    def _is_cut(self) -> bool:
        return self.finish_reason is FinishReason.LENGTH

    def _keep(self, response: JsonObject) -> None:
        if self._store is not None:
            self._store(response, self.parts[: len(self._items)])

    def _place(self, part: AnswerPart) -> JsonObject:
        place: JsonObject = {"item_id": self._ids[part.index], "output_index": part.index}
        return place if part.kind is PartKind.CALL else place | {"content_index": 0}

    def _item(self, part: AnswerPart, status: str, content: list[JsonObject]) -> JsonObject:
        item = {"id": self._ids[part.index], "type": _TYPES[part.kind], "status": status}
        match part.kind:
            case PartKind.TEXT:
                return item | {"role": "assistant", "content": content}
            case PartKind.CALL:
                return item | {"call_id": part.call_id, "name": part.name, "arguments": part.text}
            case PartKind.REASONING:
                sealed = ENCRYPTED in self._body.include and status != "in_progress"
                return item | {
                    "summary": [],
                    "content": content,
                    "encrypted_content": sealed_text(part.text) if sealed else None,
                }

    def _entries(self, logprobs: list[TokenLogprobs]) -> list[Any]:
        if not wants_logprobs(self._body):
            return []
        tokenizer, most = self._tokenizer, self._body.top_logprobs or 0
        entries: list[Any] = chat_entries(logprobs, most, tokenizer, tokenizer.token_text)["content"]
        return entries


def wants_logprobs(body: ResponsesRequest) -> bool:
    """Whether the answer holds log-probabilities of its tokens."""
    return LOGPROBS in body.include or bool(body.top_logprobs)


def _content(kind: PartKind, text: str, logprobs: list[Any]) -> JsonObject:
    if kind is PartKind.REASONING:
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _error_code(error: ApiError) -> str:
    """The nearest of the codes that clients know."""
    return "rate_limit_exceeded" if error.status == 429 else "server_error"


def response_head(generation: Generation, body: ResponsesRequest, *, stored: bool) -> JsonObject:
    """What a response says from its beginning: what it is, and how it was asked for."""
    job = generation.job
    return {
        "id": job.id,
        "object": "response",
        "created_at": job.created,
        "completed_at": None,
        "status": "in_progress",
        "background": body.background,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "model": job.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": None if body.reasoning is None else body.reasoning.effort, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": stored,
        "temperature": body.temperature,
        "text": {
            "format": {"type": "text"} if body.text is None or body.text.format is None else told(body.text.format)
        },
        "tool_choice": body.tool_choice or "auto",
        "tools": [
            {"description": None, "parameters": {}, "strict": False, **told(tool)}
            for tool in body.tools
            if isinstance(tool, FunctionToolSpec)
        ],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "truncation": body.truncation,
        "usage": None,
        "user": body.user or None,
        "metadata": body.metadata,
    }


def response_usage(counts: JsonObject) -> JsonObject:
    """A chat answer's `usage` in the words of a response."""
    cached = counts["prompt_tokens_details"]["cached_tokens"]
    thought = counts.get("completion_tokens_details", {}).get("reasoning_tokens", 0)
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": counts["total_tokens"],
    }
