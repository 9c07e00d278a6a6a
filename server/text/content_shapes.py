"""What a chat template takes as a message's content, found out by showing it marked messages.

Some templates write `message.content` and want a string; some loop over it and want parts; some look which it is. Given the
other kind, most of them raise nothing: they loop over the characters of a string and find no text in any, or write a list as
Python spells it, and the model is asked something else than the user did. So each template is tried at the start: which shapes
of content appear whole in the prompt, role by role. And each order of roles is tried when it is first met: which messages appear
in none, such as the first of two from the system.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import cached_property, lru_cache
from typing import Any

from server.text.chat_template import ChatTemplate, TemplateError

_log = logging.getLogger("headrace.server")

Content = str | list[str]  # a text, or the texts of parts


class ContentShape(Enum):
    """How content is handed to a template."""

    STRING = "a string"
    PARTS = "a list of parts"
    ONE_PART = "a list of one part"  # for templates that read the first part only

    def of(self, content: Content) -> str | list[dict[str, Any]]:
        """The content in this shape. Where parts become one text they are joined as they are."""
        if self is ContentShape.PARTS and not isinstance(content, str):
            return [{"type": "text", "text": text} for text in content]
        text = content if isinstance(content, str) else "".join(content)
        return text if self is ContentShape.STRING else [{"type": "text", "text": text}]


_FOR_STRINGS = (ContentShape.STRING, ContentShape.PARTS, ContentShape.ONE_PART)  # the first one that the template takes
_FOR_PARTS = (ContentShape.PARTS, ContentShape.STRING, ContentShape.ONE_PART)

_SAMPLES: dict[str, tuple[tuple[str, ...], ...]] = {  # conversations that show whether a role appears
    "user": (("user",), ("system", "user")),
    "system": (("system", "user"), ("system", "user", "assistant", "user"), ("user", "system")),
    "assistant": (("user", "assistant", "user"), ("user", "assistant")),
}
_CONVERSATIONS = (*dict.fromkeys(roles for samples in _SAMPLES.values() for roles in samples), ("user", "user"))
_REMEMBERED, _LONGEST_REMEMBERED = 256, 1024  # orders of roles, and messages of one
_MARK = re.compile(r"7401938265\d{7}")


class ContentShapes:
    """What one template takes. Finding out takes some tens of renderings of a few words each.

    A template that raises for a conversation says so to whoever sends one like it: that is no loss, and nothing is known of
    the shape.

    Raises:
        TemplateError: the template renders a user's only message, but in no shape does its text appear in the prompt.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._refusal: TemplateError | None = None  # the last one
        self._taken: dict[str, tuple[ContentShape, ...]] = {}  # by role; a role that was never rendered has none
        for role in _SAMPLES:
            taken = self._shapes_of(role)
            if taken is not None:
                self._taken[role] = taken
            elif role == "user":  # it refuses everything, and will say so to each request
                _log.warning("the chat template refuses the plainest conversation: %s", self._refusal)
                break
        if self._taken.get("user") == ():
            raise TemplateError(
                "the chat template leaves out what the user says, given as a string or as a list of parts; give one that does "
                "not with --chat-template"
            )
        self._lost_of_short = lru_cache(_REMEMBERED)(self._lost)

    def taken(self, role: str) -> tuple[ContentShape, ...]:
        """The shapes in which content of this role appears; of a role that the template never rendered, the user's."""
        return self._taken.get(role) or self._taken.get("user", ())

    @property
    def takes_system(self) -> bool:
        """Whether a message of the system appears."""
        return bool(self._taken.get("system"))

    @cached_property
    def takes_several_systems(self) -> bool:
        """Whether two messages of the system at the beginning both appear."""
        roles = ("system", "system", "user")
        return self._rendered(roles) is not None and not self._lost(roles)

    def samples(self) -> Iterator[str]:
        """Prompts of conversations of all kinds that the template takes."""
        prompts = (self._rendered(roles) for roles in (_CONVERSATIONS if self._taken else ()))
        return (text for text in prompts if text is not None)

    def shaped(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The conversation as the template takes it; each `content` is a `Content`, or None where a message only calls tools.

        Raises:
            TemplateError: the prompt would lack one of the messages.
        """
        roles = tuple(message["role"] for message in messages)
        lost = self._lost_of_short(roles) if len(roles) <= _LONGEST_REMEMBERED else self._lost(roles)
        for i in lost:
            if roles[i] != "tool" and any(messages[i]["content"] or ""):
                raise TemplateError(f"it would leave out messages[{i}], of the role {roles[i]}")
        return [
            {**message, "content": self._shape(message["role"], message["content"]).of(message["content"])}
            if message["content"] is not None
            else dict(message)
            for message in messages
        ]

    def _shape(self, role: str, content: Content) -> ContentShape:
        wanted = _FOR_STRINGS if isinstance(content, str) else _FOR_PARTS
        taken = self.taken(role)
        return next((shape for shape in wanted if shape in taken), wanted[0])

    def _shapes_of(self, role: str) -> tuple[ContentShape, ...] | None:
        """The shapes in which the role's content appears whole; None if each conversation with it is refused."""
        shown: list[ContentShape] = []
        rendered = False
        for shape in ContentShape:
            for roles in _SAMPLES[role]:
                text = self._rendered(roles, role, shape)
                if text is not None:
                    rendered = True
                    if _appears(text, roles.index(role)):
                        shown.append(shape)
                    break
        return tuple(shown) if rendered else None

    def _lost(self, roles: tuple[str, ...]) -> tuple[int, ...]:
        """The messages of a conversation of these roles that do not appear; none where the template refuses it."""
        text = self._rendered(roles) if self._taken else None
        shown = set(_MARK.findall(text or ""))
        return () if text is None else tuple(i for i in range(len(roles)) if not shown.issuperset(_marks(i)))

    def _rendered(
        self, roles: tuple[str, ...], tried: str = "", shape: ContentShape = ContentShape.STRING
    ) -> str | None:
        """The prompt of a marked conversation; None if the template refuses it.

        The role that is tried has this shape, and so have roles of which nothing is known yet.
        """
        messages = []
        for i, role in enumerate(roles):
            given = self._shape(role, "") if role != tried and self.taken(role) else shape
            messages.append({"role": role, "content": _marked(i, given)})
        try:
            return self._template.render(messages, add_generation_prompt=roles[-1] != "assistant")
        except TemplateError as error:
            self._refusal = error
            return None


def _marks(i: int) -> tuple[str, str]:
    """Two texts of message `i`. Digits, as templates trim, change the case, and split at words and tags."""
    return f"7401938265{2 * i:07}", f"7401938265{2 * i + 1:07}"


def _key(i: int) -> str:
    """A key of the parts of message `i`: it appears if they are written as Python or JSON instead of being read."""
    return f"unread{_marks(i)[0]}"


def _marked(i: int, shape: ContentShape) -> str | list[dict[str, Any]]:
    content = shape.of(list(_marks(i)) if shape is ContentShape.PARTS else " ".join(_marks(i)))
    return content if isinstance(content, str) else [{**part, _key(i): ""} for part in content]


def _appears(text: str, i: int) -> bool:
    return all(mark in text for mark in _marks(i)) and _key(i) not in text
