"""`truncate_prompt_tokens`: a prompt that is too long is cut instead of refused."""

from dataclasses import dataclass

from server.api.context import ServerContext
from server.errors import InvalidRequest
from server.schema.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Truncation:
    """At most `tokens` of a prompt are kept: the last, or the first if the side that is cut is the right one."""

    tokens: int
    from_right: bool

    def cut(self, ids: list[int]) -> list[int]:
        """What is kept of `ids`."""
        return ids[: self.tokens] if self.from_right else ids[-self.tokens :]


def truncation_of(body: Sampling, max_tokens: int | None, context: ServerContext) -> Truncation | None:
    """What the request asks for. -1 keeps as many tokens as the context has room for beside `max_tokens`, or beside one token.

    Raises:
        InvalidRequest: 0, or a side without a number.
    """
    asked = body.truncate_prompt_tokens
    if asked is None:
        if body.truncation_side != "left":
            raise InvalidRequest(
                f"`truncation_side` needs `truncate_prompt_tokens`, got {body.truncation_side!r} without",
                param="truncation_side",
            )
        return None
    if asked == 0:
        raise InvalidRequest("`truncate_prompt_tokens` must be -1 or at least 1, got 0", param="truncate_prompt_tokens")
    room = max(1, context.info().context - (1 if max_tokens is None else max_tokens))
    return Truncation(room if asked == -1 else asked, body.truncation_side == "right")
