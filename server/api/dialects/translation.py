"""From another API's request to a chat request: the one conversation that is served."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from server.errors import ApiError
from server.schema.chat import ChatRequest


@contextmanager
def in_words_of(names: Mapping[str, str]) -> Iterator[None]:
    """Refusals that name a field of the chat request name the client's own, by this table of the first parts of paths."""
    try:
        yield
    except ApiError as error:
        for ours, theirs in names.items():
            error.message = re.sub(rf"`{re.escape(ours)}\b", f"`{theirs}", error.message)
            if error.param is not None:
                error.param = re.sub(rf"^{re.escape(ours)}\b", theirs, error.param)
        raise


def chat_request(fields: Mapping[str, Any]) -> ChatRequest:
    """The chat request with these fields, which were checked before; those that are None are left out.

    Raises:
        AssertionError: the translation is wrong.
    """
    try:
        return ChatRequest.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise AssertionError(f"no chat request: {error}") from error


def chat_content(texts: Sequence[str]) -> str | list[dict[str, str]]:
    """The content of a chat message that consists of these texts."""
    return "".join(texts) if len(texts) < 2 else [{"type": "text", "text": text} for text in texts]
