"""The bodies of `POST /tokenize` and `POST /detokenize`."""

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from configs.settings import Settings
from server.schema.base import Array, Body, both, either, given, where, wrong
from server.schema.chat import ONE_CONTINUATION, Message, TemplateVariables
from server.schema.fields import ModelName, TokenIds
from server.schema.tools import OfferedTool


class TokenizeRequest(Body):
    """Text, or a conversation as the chat template renders it, into token ids."""

    NESTED: ClassVar[dict[str, type[Body]]] = {"messages": Message, "tools": OfferedTool}
    VERBATIM: ClassVar[frozenset[str]] = frozenset({"tools"})

    model: ModelName | None = Field(None, description="One of the served names; the served model if absent.")
    prompt: str | None = Field(None, description="Text to tokenize; this or `messages`.")
    messages: Array[Message] | None = Field(None, min_length=1, description="A conversation; this or `prompt`.")
    add_special_tokens: bool | None = Field(
        None, description="Begin as the model's tokenizer does. True for `prompt`, false for `messages`."
    )
    return_token_strs: bool = Field(False, description="The answer also holds each token's text.")
    add_generation_prompt: bool | None = Field(
        None, description="Open the assistant's turn. True unless `continue_final_message` is set."
    )
    continue_final_message: bool = Field(False, description="Leave the last message open.")
    chat_template_kwargs: TemplateVariables = Field(
        default_factory=dict, description="Variables for the chat template."
    )
    tools: Array[OfferedTool] = Field(default_factory=list, description="Those that the model is told of.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            got = "neither" if self.prompt is None else "both"
            raise wrong(f"must be given, or `messages`, and not both; got {got}", "prompt")
        stray = sorted(_ONLY_WITH_MESSAGES & self.model_fields_set) if self.messages is None else []
        if stray:
            raise wrong("needs `messages`, got `prompt`", stray[0])
        return self

    @classmethod
    def rules(cls, settings: Settings) -> list[dict[str, Any]]:
        """One source, and what goes with it."""
        no_messages = [where(field, None) for field in ("messages", *sorted(_ONLY_WITH_MESSAGES))]
        one = either(both(given("prompt"), *no_messages), both(given("messages"), where("prompt", None)))
        return [one, ONE_CONTINUATION]


_ONLY_WITH_MESSAGES = {"add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools"}


class DetokenizeRequest(Body):
    """Token ids into text."""

    model: ModelName | None = Field(None, description="One of the served names; the served model if absent.")
    tokens: TokenIds = Field(description="Token ids.")
    skip_special_tokens: bool = Field(False, description="Leave special tokens out of the text.")
