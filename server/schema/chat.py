"""The body of `POST /v1/chat/completions`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from configs.settings import Settings
from server.schema.base import Body, either, where
from server.schema.fields import Content, Count, OutputTokens
from server.schema.sampling import Sampling

Role = Literal["system", "developer", "user", "assistant"]


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
        "function_call": (),
        "reasoning_content": ("",),
        "refusal": ("",),
        "tool_call_id": (),
        "tool_calls": ([],),
    }
    NESTED: ClassVar[dict[str, type[Body]]] = {"content": ContentPart}

    role: Role
    content: Content = Field(description="Text, or text parts: joined, unless the chat template takes parts.")
    name: str | None = Field(
        None, description="Who speaks; handed to the chat template, though most templates do not show it to the model."
    )


# Variables that the server itself gives to every template.
RESERVED = frozenset({"messages", "add_generation_prompt", "continue_final_message"})
TemplateVariables = Annotated[
    dict[str, Any], Field(json_schema_extra={"properties": {name: {"type": "null"} for name in sorted(RESERVED)}})
]
ONE_CONTINUATION = either(where("add_generation_prompt", False, None), where("continue_final_message", False, None))


class ChatRequest(Sampling):
    """A conversation in, the next message out."""

    IGNORED: ClassVar[frozenset[str]] = Sampling.IGNORED | {"parallel_tool_calls"}
    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        **Sampling.UNSUPPORTED,
        "add_special_tokens": (False,),
        "audio": (),
        "chat_template": (),
        "documents": ([],),
        "echo": (False,),
        "function_call": ("none",),
        "functions": ([],),
        "include_reasoning": (True,),
        "mm_processor_kwargs": ({},),
        "modalities": (["text"],),
        "moderation": (),
        "prediction": (),
        "reasoning_effort": ("none",),
        "tool_choice": ("none",),
        "tools": ([],),
        "verbosity": ("medium",),
        "web_search_options": (),
    }
    ELSEWHERE: ClassVar[dict[str, str]] = {"prompt": "POST /v1/completions"}
    NESTED: ClassVar[dict[str, type[Body]]] = {**Sampling.NESTED, "messages": Message}

    messages: list[Message] = Field(min_length=1, description="The conversation so far.")
    max_completion_tokens: OutputTokens | None = Field(None, description="OpenAI's newer name of `max_tokens`.")
    logprobs: bool = Field(False, description="Logprobs of the message's tokens.")
    top_logprobs: Count | None = Field(None, description="Alternatives for each token. Only with `logprobs`.")
    add_generation_prompt: bool | None = Field(
        None, description="Extension: open the assistant's turn. True unless `continue_final_message` is set."
    )
    continue_final_message: bool = Field(
        False, description="Extension: continue the last message instead of closing it."
    )
    chat_template_kwargs: TemplateVariables = Field(
        default_factory=dict, description="Extension: further variables for the chat template."
    )

    @classmethod
    def rules(cls, settings: Settings) -> list[dict[str, Any]]:
        """`top_logprobs` needs `logprobs`; a message is continued, or a new one begins."""
        return [
            *super().rules(settings),
            either(where("top_logprobs", None), where("logprobs", True)),
            ONE_CONTINUATION,
        ]
