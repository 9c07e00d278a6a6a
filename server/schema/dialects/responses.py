"""The body of `POST /v1/responses`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator

from configs.settings import Settings
from server.schema.base import INT32_MAX, Array, Body, Kinds, either, where
from server.schema.chat import Effort
from server.schema.dialects.choices import ResponsesToolChoice
from server.schema.dialects.responses_items import ITEMS, Input
from server.schema.fields import Count, Int64, Metadata, ModelName, OutputTokens, Stop
from server.schema.sampling import Penalty
from server.schema.structured import Schema
from server.schema.tools import ToolName

LOGPROBS, ENCRYPTED = "message.output_text.logprobs", "reasoning.encrypted_content"
Includable = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]


def told(body: Body) -> dict[str, Any]:
    """An object as the client gave it."""
    return body.model_dump(by_alias=True, exclude_unset=True)


class PlainFormat(Body):
    """Anything, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(Body):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    name: str | None = Field(None, max_length=256, description="What it is called; the model does not see it.")
    description: str | None = Field(None, description="What it is for; the model does not see it.")
    schema_: Schema = Field(alias="schema", description="The JSON schema.")
    strict: bool | None = Field(None, description="The text fits the schema in either case.")


FORMATS = Kinds(
    field="type",
    bodies={"text": PlainFormat, "json_object": PlainFormat, "json_schema": SchemaFormat},
    unserved=frozenset({"grammar", "python"}),
)
TextFormat = Annotated[
    PlainFormat | SchemaFormat,
    PlainValidator(FORMATS.validate, json_schema_input_type=PlainFormat | SchemaFormat),
]


class FunctionToolSpec(Body):
    """A function that the model may call."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"allowed_callers", "async", "defer_loading", "output_schema"})

    type: Literal["function"]
    name: ToolName
    description: str = Field("", description="What it does, for the model.")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="JSON schema of its arguments, an object; none are taken if it is absent."
    )
    strict: bool = Field(False, description="The arguments fit `parameters` exactly.")


class WebSearchTool(Body):
    """A search that another server would do. This one has none: the model is not told of it, and the answer does not list it."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"external_web_access", "filters", "search_content_types", "search_context_size", "user_location"}
    )

    type: Literal["web_search", "web_search_preview"]


TOOLS = Kinds(
    field="type",
    bodies={"function": FunctionToolSpec, "web_search": WebSearchTool, "web_search_preview": WebSearchTool},
    unserved=frozenset(
        {
            *("apply_patch", "code_interpreter", "computer", "computer_use_preview", "custom", "file_search"),
            *(
                "image_generation",
                "local_shell",
                "mcp",
                "namespace",
                "programmatic_tool_calling",
                "shell",
                "tool_search",
            ),
        }
    ),
)
AnyTool = Annotated[
    FunctionToolSpec | WebSearchTool,
    PlainValidator(TOOLS.validate, json_schema_input_type=FunctionToolSpec | WebSearchTool),
]


class ReasoningConfig(Body):
    """How the model thinks before it answers."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"context", "generate_summary", "mode", "summary"})

    effort: Effort | None = Field(None, description="As `reasoning_effort` of a chat request.")


class TextConfig(Body):
    """The form of the text."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}
    NESTED: ClassVar[dict[str, type[Body] | Kinds]] = {"format": FORMATS}

    format: TextFormat | None = Field(None, description="Plain text, any JSON object, or what fits a JSON schema.")


class ResponseStreamOptions(Body):
    """What a stream of events may be padded with. It is not."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"include_obfuscation"})


class ResponseInput(Body):
    """A conversation in items: what the model is given."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {"conversation": (), "personality": ()}
    ELSEWHERE: ClassVar[dict[str, str]] = {"messages": "POST /v1/chat/completions"}
    LIMITED: ClassVar[dict[str, str]] = {"input": "items"}
    NESTED: ClassVar[dict[str, type[Body] | Kinds]] = {
        "input": ITEMS,
        "reasoning": ReasoningConfig,
        "text": TextConfig,
        "tools": TOOLS,
    }
    VERBATIM: ClassVar[frozenset[str]] = frozenset({"text", "tools"})

    model: ModelName | None = Field(None, description="One of the served names; the served model if absent.")
    input: Input = Field(description="A text of the user, or items.")
    previous_response_id: str | None = Field(
        None, max_length=256, description="A stored response to go on with: its items, and those before it, come first."
    )
    instructions: str | None = Field(
        None, description="A system message in front of everything else. It is not carried over to the next response."
    )
    tools: Array[AnyTool] = Field(default_factory=list, description="What the model may call.")
    tool_choice: ResponsesToolChoice | None = Field(
        None,
        description="Whether it calls a tool: `none`, `auto` (it decides), `required`, one function, or those of `allowed_tools`; "
        "`auto` if absent.",
    )
    parallel_tool_calls: bool = Field(True, description="Whether one answer may hold several calls.")
    reasoning: ReasoningConfig | None = Field(None, description="How the model thinks before it answers.")
    text: TextConfig | None = Field(None, description="The form of the text.")
    truncation: Literal["auto", "disabled"] = Field(
        "disabled",
        description="`auto`: where the conversation is too long for the context, it goes on without its oldest turns.",
    )


class ResponsesRequest(ResponseInput):
    """Items of a conversation in, the items that come next out."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            *("client_metadata", "max_tool_calls", "prompt_cache_options"),
            *("prompt_cache_retention", "service_tier"),
        }
    )
    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "access_programs": (),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        "moderation": (),
        "prompt": (),
    }
    ELSEWHERE: ClassVar[dict[str, str]] = ResponseInput.ELSEWHERE | {"max_tokens": "POST /v1/chat/completions"}
    NESTED: ClassVar[dict[str, type[Body] | Kinds]] = ResponseInput.NESTED | {"stream_options": ResponseStreamOptions}

    max_output_tokens: OutputTokens | None = Field(
        None, description="Most tokens to generate, reasoning included; what is left of the context if absent."
    )
    temperature: float = Field(1.0, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(
        1.0, ge=0, le=1, description="Sample from the likeliest tokens whose probabilities sum up to this; 0 is greedy."
    )
    presence_penalty: Penalty = Field(0.0, description="Subtracted once from every token that was generated.")
    frequency_penalty: Penalty = Field(0.0, description="Subtracted from a token for each time it was generated.")
    top_k: int = Field(
        0, ge=-1, le=INT32_MAX, description="Extension: sample from the k likeliest tokens; 0 and -1 are off."
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="Extension: lowest probability, relative to the likeliest token's."
    )
    seed: Int64 | None = Field(None, description="Extension: the same seed gives the same text, whatever else runs.")
    stop: Stop = Field(
        default_factory=list, description="Extension: strings that end the text; they are not part of it."
    )
    include: Array[Includable] = Field(
        default_factory=list,
        description="What the answer holds beside the text: `message.output_text.logprobs`, `reasoning.encrypted_content`; the "
        "others are about tools that are not served.",
    )
    top_logprobs: Count | None = Field(None, description="Alternatives for each token; more than 0 includes logprobs.")
    stream: bool = Field(False, description="Answer with server-sent events.")
    stream_options: ResponseStreamOptions | None = Field(None, description="Nothing here changes the stream.")
    background: bool = Field(
        False,
        description="Answer at once, and compute the response whether or not its client stays: it is to be asked for by its id.",
    )
    store: bool = Field(
        True, description="Keep the response, for as long as the operator lets it (`response_seconds`)."
    )
    metadata: Metadata = Field(default_factory=dict, description="Up to 16 pairs, kept with the response.")
    user: str = Field("", max_length=512, description="On whose behalf the request is made, as in a chat request.")
    safety_identifier: str | None = Field(None, max_length=512, description="Comes back in the answer.")
    prompt_cache_key: str | None = Field(
        None, max_length=512, description="Comes back in the answer; prefixes are cached for everybody."
    )
    cache_salt: str = Field(
        "",
        max_length=256,
        description="Extension: cached prefixes are shared only between requests with the same salt.",
    )

    @classmethod
    def rules(cls, settings: Settings) -> list[dict[str, Any]]:
        """What runs in the background is stored, where that is possible."""
        if not settings.max_background or not settings.response_seconds:
            return [where("background", False, None)]
        return [either(where("background", False, None), where("store", True, None))]
