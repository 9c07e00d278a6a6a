"""The events of Anthropic's messages, the message itself, and its errors.

Source: https://platform.claude.com/docs/en/build-with-claude/streaming.
"""

from collections.abc import Iterator, Mapping

from scheduler.types.messages import FinishReason
from scheduler.types.step import TokenLogprobs
from server.api.answers.formats import usage
from server.api.dialects.parts import AnswerPart, Event, EventWriter, JsonObject, PartKind
from server.errors import ApiError
from server.stream.generation import Generation
from server.text.tool_shapes import object_of

_ERROR_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


def anthropic_error(error: ApiError, request_id: str) -> JsonObject:
    """An error in Anthropic's form, with the field and the code of ours."""
    kind = _ERROR_TYPES.get(error.status, "invalid_request_error")
    return {"type": "error", "error": error.body()["error"] | {"type": kind}, "request_id": request_id}


_SIGNATURE = "headrace"  # clients keep thoughts that have one; it is not checked
_DELTAS = {
    PartKind.TEXT: ("text_delta", "text"),
    PartKind.REASONING: ("thinking_delta", "thinking"),
    PartKind.CALL: ("input_json_delta", "partial_json"),
}


class MessageWriter(EventWriter):
    """One message on its way. Each part is a content block."""

    def __init__(self, generation: Generation, request_id: str, clipped: bool) -> None:
        super().__init__(generation)
        self._request_id = request_id
        self._clipped = clipped
        self._blocks: list[JsonObject] = []

    def written(self, event: Event) -> bytes:
        """An event, with its type."""
        name, data = event
        return super().written((name, {"type": name, **data}))

    def begun(self) -> Iterator[Event]:
        """The message without content, and what its prompt took."""
        yield "message_start", {"message": self._message(None, None) | {"content": []}}

    def opened(self, part: AnswerPart) -> Iterator[Event]:
        """An empty block."""
        yield "content_block_start", {"index": part.index, "content_block": _block(part, "")}

    def grown(self, part: AnswerPart, text: str, logprobs: list[TokenLogprobs]) -> Iterator[Event]:
        """More of it."""
        kind, field = _DELTAS[part.kind]
        yield "content_block_delta", {"index": part.index, "delta": {"type": kind, field: text}}

    def closed(self, part: AnswerPart) -> Iterator[Event]:
        """The block is complete; thoughts are signed."""
        self._blocks.append(
            _block(part, part.text) | ({"signature": _SIGNATURE} if part.kind is PartKind.REASONING else {})
        )
        if part.kind is PartKind.REASONING:
            yield (
                "content_block_delta",
                {
                    "index": part.index,
                    "delta": {"type": "signature_delta", "signature": _SIGNATURE},
                },
            )
        yield "content_block_stop", {"index": part.index}

    def answer(self) -> JsonObject:
        """The message."""
        return self._message(*self._stop())

    def end(self) -> bytes:
        """Why it ended, and what it took."""
        reason, sequence = self._stop()
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return self.written(("message_delta", {"delta": delta, "usage": self._usage()})) + self.written(
            ("message_stop", {})
        )

    def failed(self, error: ApiError) -> bytes:
        """The error."""
        return self.written(("error", anthropic_error(error, self._request_id)))

    def _stop(self) -> tuple[str, str | None]:
        if self.finish_reason is FinishReason.LENGTH:
            return "model_context_window_exceeded" if self._clipped else "max_tokens", None
        if self.calls:
            return "tool_use", None
        return ("stop_sequence", self.stop_reason) if isinstance(self.stop_reason, str) else ("end_turn", None)

    def _message(self, reason: str | None, sequence: str | None) -> JsonObject:
        job = self.generation.job
        return {
            "id": job.id,
            "type": "message",
            "role": "assistant",
            "model": job.model,
            "content": self._blocks,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": self._usage(),
        }

    def _usage(self) -> JsonObject:
        counts = usage(self.generation)
        cached = counts["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": counts["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": counts["completion_tokens"],
        }


def _block(part: AnswerPart, text: str) -> JsonObject:
    match part.kind:
        case PartKind.TEXT:
            return {"type": "text", "text": text}
        case PartKind.REASONING:
            return {"type": "thinking", "thinking": text, "signature": ""}
        case PartKind.CALL:
            return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": _input(text)}


def _input(arguments: str) -> JsonObject:
    """The arguments of a call; none, if the answer ended within them."""
    value = object_of(arguments)
    return value if isinstance(value, dict) else {}
