"""The bodies of `POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from server.schema.base import INT32_MAX, Body, Kinds
from server.schema.dialects.parts import text_or
from server.schema.fields import ModelName, Text


class TextBlock(Body):
    """A text."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"cache_control", "citations"})

    type: Literal["text"]
    text: str


BLOCKS = Kinds(
    field="type",
    bodies={"text": TextBlock},
    unserved=frozenset(
        {
            *("bash_code_execution_tool_result", "code_execution_tool_result", "container_upload", "document", "image"),
            *("redacted_thinking", "search_result", "server_tool_use", "text_editor_code_execution_tool_result"),
            *("thinking", "tool_result", "tool_search_tool_result", "tool_use", "web_fetch_tool_result"),
            "web_search_tool_result",
        }
    ),
)
TEXT_BLOCKS = Kinds(field="type", bodies={"text": TextBlock})
_Block = Annotated[TextBlock, PlainValidator(BLOCKS.validate, json_schema_input_type=TextBlock)]
_TextBlock = Annotated[TextBlock, PlainValidator(TEXT_BLOCKS.validate, json_schema_input_type=TextBlock)]
_blocks = text_or("content blocks", lambda text: {"type": "text", "text": text})
Blocks = Annotated[list[_Block], BeforeValidator(_blocks, json_schema_input_type=str | list[_Block])]
TextBlocks = Annotated[list[_TextBlock], BeforeValidator(_blocks, json_schema_input_type=str | list[_TextBlock])]


class ConversationMessage(Body):
    """One message of a conversation."""

    NESTED: ClassVar[dict[str, type[Body] | Kinds]] = {"content": BLOCKS}

    role: Literal["user", "assistant", "system"]
    content: Blocks = Field(description="Text, or blocks.")


class MessageMetadata(Body):
    """About the request."""

    user_id: str = Field("", max_length=512, description="On whose behalf it is made, as `user` of a chat request.")


class CountTokensRequest(Body):
    """A conversation whose tokens are counted."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"cache_control", "context_management", "inference_geo", "service_tier", "speed"}
    )
    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "mcp_servers": ([],),
        "output_config": ({},),
        "thinking": ({"type": "disabled"},),
        "tool_choice": ({"type": "auto"}, {"type": "none"}),
        "tools": ([],),
    }
    NESTED: ClassVar[dict[str, type[Body] | Kinds]] = {"messages": ConversationMessage, "system": TEXT_BLOCKS}

    model: ModelName | None = Field(None, description="One of the served names; the served model if absent.")
    messages: list[ConversationMessage] = Field(
        min_length=1,
        description="The conversation so far. If the assistant has the last word, the answer goes on with it.",
    )
    system: TextBlocks = Field(default_factory=list, description="The system's message, text or blocks of text.")


class MessagesRequest(CountTokensRequest):
    """A conversation in, the assistant's next message out."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = CountTokensRequest.UNSUPPORTED | {
        "container": (),
        "diagnostics": (),
    }
    ELSEWHERE: ClassVar[dict[str, str]] = {"max_completion_tokens": "POST /v1/chat/completions"}
    NESTED: ClassVar[dict[str, type[Body] | Kinds]] = CountTokensRequest.NESTED | {"metadata": MessageMetadata}

    max_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] = Field(
        description="Most tokens to generate; fewer where the context has no room for them, and the answer then stops with "
        "`model_context_window_exceeded`."
    )
    stop_sequences: list[Text] = Field(
        default_factory=list, description="Strings that end the text; they are not part of it."
    )
    stream: bool = Field(False, description="Answer with server-sent events.")
    temperature: float = Field(1.0, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(
        1.0, ge=0, le=1, description="Sample from the likeliest tokens whose probabilities sum up to this; 0 is greedy."
    )
    top_k: int = Field(0, ge=-1, le=INT32_MAX, description="Sample from the k likeliest tokens; 0 and -1 are off.")
    metadata: MessageMetadata | None = Field(None, description="About the request.")
