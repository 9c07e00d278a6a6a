"""From a conversation as clients send it to the text of a prompt: the template, and the shape in which it takes content."""

from collections.abc import Mapping, Sequence
from typing import Any

from server.text.chat_template import ChatTemplate, load_chat_template
from server.text.content_shapes import ContentShapes
from server.text.tokenizer import Tokenizer


class ChatRenderer:
    """A model's chat template, tried once and then used for every conversation; from any thread.

    Raises:
        TemplateError: the template leaves out what the user says.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._shapes = ContentShapes(template)

    def render(self, messages: Sequence[Mapping[str, Any]], /, **options: Any) -> str:
        """The prompt of a conversation, to be encoded with `add_special_tokens=False`: it contains its own BOS.

        Args:
            messages: objects with `role` and `content`, a string or a list of the strings of its parts; oldest first.
            options: as for `ChatTemplate.render`.

        Raises:
            TemplateError: the template refuses or fails, or would leave out a message.
        """
        return self._template.render(self._shapes.shaped(messages), **options)


def load_chat_renderer(tokenizer: Tokenizer, path: str | None = None) -> ChatRenderer | None:
    """With the operator's template at `path`, else the model's own, else None.

    Raises:
        TemplateError: the file cannot be read, is not a valid template, or leaves out what the user says.
    """
    template = load_chat_template(tokenizer, path)
    return None if template is None else ChatRenderer(template)
