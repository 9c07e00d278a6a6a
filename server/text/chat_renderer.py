"""From a conversation as clients send it to the ids of a prompt: template, shape of contents, special tokens in them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from server.text.chat_template import ChatTemplate, TemplateError, load_chat_template
from server.text.content_as_text import ContentAsText
from server.text.content_shapes import ContentShapes
from server.text.template_sandbox import TemplateSandbox
from server.text.tokenizer import Tokenizer
from server.text.tracing_sandbox import TracingSandbox

Encode = Callable[[str, bool], list[int]]  # as `Tokenizer.encode`


class ChatRenderer:
    """A model's chat template, tried once and then used for every conversation; from any thread.

    Attributes:
        encode: from the text of a prompt to its ids.

    Raises:
        TemplateError: the template leaves out what the user says.
    """

    def __init__(self, template: ChatTemplate, encode: Encode) -> None:
        self.encode = encode
        self._template = template
        self._shapes = ContentShapes(template)

    def render(self, messages: Sequence[Mapping[str, Any]], /, **options: Any) -> str:
        """The prompt of a conversation, to be encoded without further special tokens: it contains its own BOS.

        Args:
            messages: objects with `role` and `content`, a string or a list of the strings of its parts; oldest first.
            options: as for `ChatTemplate.render`.

        Raises:
            TemplateError: the template refuses or fails, or would leave out a message.
        """
        return self._template.render(self._shapes.shaped(messages), **options)

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
    tokenizer: Tokenizer, path: str | None = None, content_special_tokens: Literal["control", "text"] = "control"
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
        return ChatRenderer(template, tokenizer.encode)
    renderer = ChatRenderer(template, ContentAsText(tokenizer, template.source).encode)
    renderer.check_markers(tokenizer.encode)
    return renderer
