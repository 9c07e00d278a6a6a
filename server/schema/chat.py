"""The body of `POST /v1/chat/completions`."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from configs.settings import Settings
from server.schema.base import Array, Body, both, either, given, where, wrong
from server.schema.fields import Content, Count, OutputTokens
from server.schema.sampling import Sampling
from server.schema.tools import Choice, FunctionChoice, OfferedFunction, OfferedTool, PastCall, PastFunction

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class ContentPart(Body):
    """One part of a message's content. Only the tables are used; `fields.check_content` reads the text."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"cache_control", "prompt_cache_breakpoint"})
    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = dict.fromkeys(
        ("audio_url", "file", "image_url", "input_audio", "refusal", "video_url"), ()
    )

    type: Literal["text"]
    text: str


class Message(Body):
    """One message of a conversation."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"annotations", "cache_control", "id"})
    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "audio": (),
        "refusal": ("",),
    }
    NESTED: ClassVar[dict[str, type[Body]]] = {
        "content": ContentPart,
        "function_call": PastFunction,
        "tool_calls": PastCall,
    }

    role: Role
    content: Content = Field(
        "",
        description="Text, or text parts: joined, unless the chat template takes parts. Only the assistant's may be left out.",
    )
    name: str | None = Field(
        None, description="Who speaks; handed to the chat template, though most templates do not show it to the model."
    )
    tool_calls: Array[PastCall] = Field(default_factory=list, description="What the assistant called.")
    tool_call_id: str | None = Field(None, description="Of the call whose result this is.")
    function_call: PastFunction | None = Field(None, description="Older form of one entry of `tool_calls`.")
    reasoning_content: str | None = Field(
        None,
        description="Extension: what the assistant thought first; whether the model sees it again, its template says.",
    )
    reasoning: str | None = Field(None, description="Extension: another name of `reasoning_content`.")

    @model_validator(mode="after")
    def _by_role(self) -> Self:
        if self.role != "assistant":
            if "content" not in self.model_fields_set:
                raise wrong("is required", ".content")
            if self.tool_calls or self.function_call is not None:
                field = "tool_calls" if self.tool_calls else "function_call"
                raise wrong(f"needs the role assistant, got {self.role}", f".{field}")
        return self

    @classmethod
    def rules(cls, settings: Settings) -> list[dict[str, Any]]:
        """What only the assistant's messages may lack, and may have."""
        others = both(given("content"), where("tool_calls", [], None), where("function_call", None))
        return [either(where("role", "assistant"), others)]


# Variables that the server itself gives to every template.
RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})
TemplateVariables = Annotated[
    dict[str, Any], Field(json_schema_extra={"properties": {name: {"type": "null"} for name in sorted(RESERVED)}})
]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
ONE_CONTINUATION = either(where("add_generation_prompt", False, None), where("continue_final_message", False, None))


class Prediction(Body):
    """What the client expects the answer to be."""

    NESTED: ClassVar[dict[str, type[Body]]] = {"content": ContentPart}

    type: Literal["content"]
    content: Content


class ChatRequest(Sampling):
    """A conversation in, the next message out."""

    VERBATIM: ClassVar[frozenset[str]] = Sampling.VERBATIM | {"functions", "tools"}
    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        **Sampling.UNSUPPORTED,
        "add_special_tokens": (False,),
        "audio": (),
        "chat_template": (),
        "documents": ([],),
        "echo": (False,),
        "mm_processor_kwargs": ({},),
        "modalities": (["text"],),
        "moderation": (),
        "verbosity": ("medium",),
        "web_search_options": (),
    }
    ELSEWHERE: ClassVar[dict[str, str]] = {"prompt": "POST /v1/completions"}
    NESTED: ClassVar[dict[str, type[Body]]] = {
        **Sampling.NESTED,
        "functions": OfferedFunction,
        "messages": Message,
        "prediction": Prediction,
        "tools": OfferedTool,
    }

    messages: Array[Message] = Field(min_length=1, description="The conversation so far.")
    max_completion_tokens: OutputTokens | None = Field(None, description="OpenAI's newer name of `max_tokens`.")
    logprobs: bool = Field(False, description="Logprobs of the message's tokens.")
    top_logprobs: Count | None = Field(None, description="Alternatives for each token. Only with `logprobs`.")
    prediction: Prediction | None = Field(
        None,
        description="What the answer will be like. Where the server guesses tokens ahead (`--speculation`), it guesses from it "
        "first; the answer is the same without.",
    )
    add_generation_prompt: bool | None = Field(
        None, description="Extension: open the assistant's turn. True unless `continue_final_message` is set."
    )
    continue_final_message: bool = Field(
        False, description="Extension: continue the last message instead of closing it."
    )
    chat_template_kwargs: TemplateVariables = Field(
        default_factory=dict, description="Extension: further variables for the chat template."
    )

    tools: Array[OfferedTool] = Field(default_factory=list, description="What the model may call.")
    tool_choice: Choice | None = Field(
        None,
        description="Whether it calls a tool: `none`, `auto` (it decides), `required`, one function, or those of `allowed_tools`; "
        "`auto` if absent.",
    )
    parallel_tool_calls: bool = Field(True, description="Whether one answer may hold several calls.")
    functions: Array[OfferedFunction] = Field(default_factory=list, description="Older form of `tools`.")
    function_call: FunctionChoice | None = Field(None, description="Older form of `tool_choice`.")
    reasoning_effort: Effort | None = Field(
        None,
        description="How much the model thinks before it answers, as far as its chat template knows; `none`: not at all.",
    )
    enable_thinking: bool | None = Field(
        None, description="Extension: the variable of chat templates that lets the model think first."
    )
    thinking_token_budget: Count | None = Field(
        None,
        description="Extension: after this many tokens of reasoning its closing tag follows. For models whose tags are tokens.",
    )
    include_reasoning: bool = Field(
        True, description="Extension: whether the answer holds what the model thinks first."
    )

    @classmethod
    def rules(cls, settings: Settings) -> list[dict[str, Any]]:
        """`top_logprobs` needs `logprobs`; a message is continued, or a new one begins."""
        return [
            *super().rules(settings),
            either(where("top_logprobs", None), where("logprobs", True)),
            ONE_CONTINUATION,
        ]
