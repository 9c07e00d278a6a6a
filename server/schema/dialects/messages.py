"""The bodies of `POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from configs.settings import Settings
from server.schema.base import INT32_MAX, Array, Body, Kinds, either, where
from server.schema.dialects.choices import MessagesToolChoice
from server.schema.dialects.parts import text_or
from server.schema.fields import Count, ModelName, Text
from server.schema.structured import Schema
from server.schema.tools import ToolName


class TextBlock(Body):
    """A text."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"cache_control", "citations"})

    type: Literal["text"]
    text: str


TEXT_BLOCKS = Kinds(
    field="type", bodies={"text": TextBlock}, unserved=frozenset({"document", "image", "search_result"})
)
_TextBlock = Annotated[TextBlock, PlainValidator(TEXT_BLOCKS.validate, json_schema_input_type=TextBlock)]
_blocks = text_or("content blocks", lambda text: {"type": "text", "text": text})
TextBlocks = Annotated[Array[_TextBlock], BeforeValidator(_blocks, json_schema_input_type=str | list[_TextBlock])]


class ThoughtBlock(Body):
    """What the model thought; whether it sees it again, its chat template says."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"cache_control", "signature"})

    type: Literal["thinking"]
    thinking: str


class HiddenThoughtBlock(Body):
    """What another server's model thought, which nobody else can read: it is left out."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"cache_control", "data"})

    type: Literal["redacted_thinking"]


class ToolUseBlock(Body):
    """A call of an earlier turn."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"cache_control", "caller", "toolset_name"})

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any] = Field(description="Its arguments.")


class ToolResultBlock(Body):
    """What came of a call."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"cache_control", "is_error", "toolset_name"})
    NESTED: ClassVar[dict[str, type[Body] | Kinds]] = {"content": TEXT_BLOCKS}

    type: Literal["tool_result"]
    tool_use_id: str
    content: TextBlocks = Field(default_factory=list, description="Text, or blocks of text.")


AnyBlock = TextBlock | ThoughtBlock | HiddenThoughtBlock | ToolUseBlock | ToolResultBlock
BLOCKS = Kinds(
    field="type",
    bodies={
        "text": TextBlock,
        "thinking": ThoughtBlock,
        "redacted_thinking": HiddenThoughtBlock,
        "tool_use": ToolUseBlock,
        "tool_result": ToolResultBlock,
    },
    unserved=frozenset(
        {
            *("bash_code_execution_tool_result", "code_execution_tool_result", "container_upload", "document", "image"),
            *("search_result", "server_tool_use", "text_editor_code_execution_tool_result", "tool_search_tool_result"),
            *("web_fetch_tool_result", "web_search_tool_result"),
        }
    ),
)
_Block = Annotated[AnyBlock, PlainValidator(BLOCKS.validate, json_schema_input_type=AnyBlock)]
Blocks = Annotated[Array[_Block], BeforeValidator(_blocks, json_schema_input_type=str | list[_Block])]


class ConversationMessage(Body):
    """One message of a conversation."""

    NESTED: ClassVar[dict[str, type[Body] | Kinds]] = {"content": BLOCKS}

    role: Literal["user", "assistant", "system"]
    content: Blocks = Field(description="Text, or blocks.")

    @classmethod
    def rules(cls, settings: Settings) -> list[dict[str, Any]]:
        """Only the assistant thinks, and calls tools."""
        told = {"items": where("type", "text", "tool_result")}
        return [either(where("role", "assistant"), {"properties": {"content": told}})]


class MessageMetadata(Body):
    """About the request."""

    user_id: str = Field("", max_length=512, description="On whose behalf it is made, as `user` of a chat request.")


class ClientTool(Body):
    """A tool that the client has."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"allowed_callers", "cache_control", "defer_loading", "eager_input_streaming", "input_examples"}
    )

    type: Literal["custom"] = "custom"
    name: ToolName
    description: str = Field("", description="What it does, for the model.")
    input_schema: dict[str, Any] = Field(description="JSON schema of its input, an object.")
    strict: bool = Field(False, description="The input fits `input_schema` exactly.")


CLIENT_TOOLS = Kinds(
    field="type",
    bodies={"custom": ClientTool},
    default="custom",
    unserved=frozenset(
        {
            *("bash_20250124", "code_execution_20250522", "code_execution_20250825", "computer_20250124"),
            *("memory_20250818", "text_editor_20250124", "text_editor_20250429", "text_editor_20250728"),
            *("web_fetch_20250910", "web_search_20250305"),
        }
    ),
)
OfferedClientTool = Annotated[ClientTool, PlainValidator(CLIENT_TOOLS.validate, json_schema_input_type=ClientTool)]


class ThinkingConfig(Body):
    """Whether the model thinks before it answers, if it can."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"display"})

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Count | None = Field(
        None,
        description="With `enabled`: most tokens to think with, where the tags around thoughts are tokens of the model.",
    )


class OutputFormat(Body):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    schema_: Schema = Field(alias="schema", description="The JSON schema.")


class OutputConfig(Body):
    """The form of the answer."""

    NESTED: ClassVar[dict[str, type[Body] | Kinds]] = {"format": OutputFormat}

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="How much the model thinks, where its chat template has a variable for it."
    )
    format: OutputFormat | None = Field(None, description="JSON that fits a schema.")


class CountTokensRequest(Body):
    """A conversation whose tokens are counted."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"cache_control", "context_management", "inference_geo", "service_tier", "speed"}
    )
    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "mcp_servers": ([],),
    }
    NESTED: ClassVar[dict[str, type[Body] | Kinds]] = {
        "messages": ConversationMessage,
        "output_config": OutputConfig,
        "system": TEXT_BLOCKS,
        "thinking": ThinkingConfig,
        "tools": CLIENT_TOOLS,
    }
    VERBATIM: ClassVar[frozenset[str]] = frozenset({"output_config", "tools"})

    model: ModelName | None = Field(None, description="One of the served names; the served model if absent.")
    messages: Array[ConversationMessage] = Field(
        min_length=1,
        description="The conversation so far. If the assistant has the last word, the answer goes on with it.",
    )
    system: TextBlocks = Field(default_factory=list, description="The system's message, text or blocks of text.")
    tools: Array[OfferedClientTool] = Field(default_factory=list, description="What the model may call.")
    tool_choice: MessagesToolChoice | None = Field(
        None, description="Whether it calls a tool: `auto` (it decides), `any`, one `tool`, or `none`."
    )
    thinking: ThinkingConfig | None = Field(
        None, description="Whether the model thinks first, where its chat template has a variable for it."
    )
    output_config: OutputConfig | None = Field(None, description="The form of the answer.")


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
    stop_sequences: Array[Text] = Field(
        default_factory=list, description="Strings that end the text; they are not part of it."
    )
    stream: bool = Field(False, description="Answer with server-sent events.")
    temperature: float = Field(1.0, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(
        1.0, ge=0, le=1, description="Sample from the likeliest tokens whose probabilities sum up to this; 0 is greedy."
    )
    top_k: int = Field(0, ge=-1, le=INT32_MAX, description="Sample from the k likeliest tokens; 0 and -1 are off.")
    metadata: MessageMetadata | None = Field(None, description="About the request.")
