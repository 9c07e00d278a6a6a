"""From a conversation as clients send it to the ids of a prompt: template, shape of contents, special tokens in them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, Protocol

from server.text.chat_template import ChatTemplate, TemplateError, load_chat_template
from server.text.content_as_text import ContentAsText
from server.text.content_shapes import ContentShapes
from server.text.formats.tool_formats import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    ReasoningFormat,
    ToolFormat,
    reasoning_format_of,
    tool_format_of,
)
from server.text.formats.value_types import JsonTypes
from server.text.message_parser import MessageForm
from server.text.template_sandbox import TemplateSandbox
from server.text.tokenizer import Tokenizer
from server.text.tool_shapes import ToolShapes
from server.text.tracing_sandbox import TracingSandbox

Encode = Callable[[str, bool], list[int]]  # as `Tokenizer.encode`


class EncodePrompt(Protocol):
    """As `Tokenizer.encode`."""

    def __call__(self, text: str, add_special_tokens: bool, /, *, salt: str | None = None) -> list[int]:
        """The ids of a prompt; long ones of one salt are remembered."""


@dataclass(frozen=True, slots=True)
class MessageFormats:
    """What an operator says of the model's messages: names of formats, `auto` for what the template shows, `none`.

    `tool_template`: what becomes of tools that the template leaves out: told in words (`generic`), or refused.
    """

    tools: str = "auto"
    reasoning: str = "auto"
    tool_template: Literal["generic", "refuse"] = "generic"

    def tool_format(self, source: str) -> ToolFormat:
        """The format of a model with this template; what is told in words asks for the commonest."""
        if self.tools != "auto":
            return TOOL_FORMATS[self.tools]
        return tool_format_of(source) or TOOL_FORMATS["hermes"]

    def reasoning_format(self, source: str) -> ReasoningFormat | None:
        """The format of a model with this template, if it thinks first."""
        return reasoning_format_of(source) if self.reasoning == "auto" else REASONING_FORMATS.get(self.reasoning)


class ChatRenderer:
    """A model's chat template, tried once and then used for every conversation; from any thread.

    Attributes:
        encode: from the text of a prompt to its ids.
        tools: how the model writes calls of tools.
        reasoning: how it writes what it thinks first; None: it does not.

    Raises:
        TemplateError: the template leaves out what the user says.
    """

    def __init__(
        self, template: ChatTemplate, encode: EncodePrompt, formats: MessageFormats = MessageFormats()
    ) -> None:
        self.encode = encode
        self.tools = formats.tool_format(template.source)
        self.reasoning = formats.reasoning_format(template.source)
        self._template = template
        self._shapes = ContentShapes(template)
        self._tool_shapes = ToolShapes(template, self._shapes.takes_system)
        self._refuses_tools = formats.tool_template == "refuse"

    def render(
        self, messages: Sequence[Mapping[str, Any]], /, tools: Sequence[Mapping[str, Any]] = (), **options: Any
    ) -> str:
        """The prompt of a conversation, to be encoded without further special tokens: it contains its own BOS.

        Args:
            messages: objects with `role` and `content`, a string or a list of the strings of its parts; oldest first. An
                assistant's may have `tool_calls`.
            tools: those that the model may call, as OpenAI's JSON has them.
            options: as for `ChatTemplate.render`.

        Raises:
            TemplateError: the template refuses or fails, or would leave out a message or the tools.
        """
        if tools and self._refuses_tools and not self._tool_shapes.shows_tools:
            raise TemplateError("it would leave out the tools")
        shaped = self._shapes.shaped(self._tool_shapes.shaped(self._with_one_system(messages), tools))
        return self._template.render(shaped, **options, tools=list(tools) or None)

    def reads(self, variable: str) -> bool:
        """Whether the template has a variable of this name."""
        return variable in self._template.source

    def message_form(
        self, prompt: str, parameters: Mapping[str, Mapping[str, JsonTypes]], continued: str | None = None
    ) -> MessageForm | None:
        """How the message that follows a prompt is to be read; None: as text.

        Args:
            prompt: the prompt's text.
            parameters: the tools that may be called, with the types of their parameters.
            continued: the beginning of the message, if it is in the prompt.
        """
        if not parameters and self.reasoning is None:
            return None
        thinks = thought = False
        if self.reasoning is not None:
            begin, end = self.reasoning.begin, self.reasoning.end
            said = prompt if continued is None else continued
            just_begun = said.rstrip().endswith(begin)
            thought = not just_begun and continued is not None and said.rfind(begin) > said.rfind(end)
            thinks = just_begun or thought
        return MessageForm(
            tools=self.tools if parameters else None,
            parameters=parameters,
            reasoning=self.reasoning,
            thinks=thinks,
            thought=thought,
        )

    def _with_one_system(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Messages of the system at the beginning as one, where the template takes only one."""
        first = list(takewhile(lambda message: message["role"] == "system", messages))
        if len(first) < 2 or self._shapes.takes_several_systems:
            return messages
        texts = [each["content"] if isinstance(each["content"], str) else "".join(each["content"]) for each in first]
        return [{**first[0], "content": "\n\n".join(texts)}, *messages[len(first) :]]

    def check_markers(self, encode: Encode) -> None:
        """Whether prompts without special tokens in their contents have the ids that `encode` gives.

        Raises:
            TemplateError: they have not: the template makes its markers in a way that does not show that they are its own.
        """
        for text in self._shapes.samples():
            if self.encode(text, False) != encode(text, False):
                raise TemplateError(
                    "the chat template makes special tokens of pieces that cannot be told from a message's content; start "
                    "with --content-special-tokens control, or give another one with --chat-template"
                )


def load_chat_renderer(
    tokenizer: Tokenizer,
    path: str | None = None,
    content_special_tokens: Literal["control", "text"] = "control",
    formats: MessageFormats = MessageFormats(),
) -> ChatRenderer | None:
    """With the operator's template at `path`, else the model's own, else None.

    Raises:
        TemplateError: the file cannot be read, is not a valid template, leaves out what the user says, or does not show which
            special tokens are its own where those in contents are text.
    """
    as_text = content_special_tokens == "text"
    template = load_chat_template(tokenizer, path, TracingSandbox if as_text else TemplateSandbox)
    if template is None:
        return None
    if not as_text:
        return ChatRenderer(template, tokenizer.encode, formats)
    renderer = ChatRenderer(template, ContentAsText(tokenizer, template.source).encode, formats)
    renderer.check_markers(tokenizer.encode)
    return renderer
