"""`truncation: "auto"`: a conversation that is too long for the context goes on without its oldest turns."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from server.api.chat import chat_ids
from server.api.context import ServerContext
from server.api.dialects.translation import chat_request
from server.errors import ContextExceeded

ChatMessage = dict[str, Any]


def fitting(fields: Mapping[str, Any], asked: int | None, context: ServerContext) -> Mapping[str, Any]:
    """The fields of a chat request, with as many of its messages as the context has room for beside `asked` tokens of output.

    Where nothing is said of the output, a conversation that is too long leaves it a quarter of the context, so that it is not cut
    again in every turn. If not even the last turn fits, it is what remains.
    """
    limit = context.info().context

    def fits(messages: list[ChatMessage], room: int) -> bool:
        try:
            ids = chat_ids(chat_request({**fields, "messages": messages}), context)
        except ContextExceeded:
            return False
        return len(ids) + room <= limit

    whole = list(fields["messages"])
    if fits(whole, asked or 1):
        return fields
    rests, room = without_oldest(whole), asked or limit // 4
    first = bisect_left(rests, True, key=lambda rest: fits(rest, room)) if rests else 0
    return {**fields, "messages": [*rests, whole][min(first, len(rests) - 1)]}


def without_oldest(messages: Sequence[ChatMessage]) -> list[list[ChatMessage]]:
    """A conversation with ever more of its oldest parts left out, the longest first.

    Turns go as a whole, so that no answer stands without its question and no result without its call. Of the last turn calls go,
    each with its results. What the system says stays, and so do the user's last message and what the model is to go on with.
    """
    dropped: set[int] = set()
    rests: list[list[ChatMessage]] = []
    for part in _parts(messages):
        dropped.update(part)
        rests.append([message for index, message in enumerate(messages) if index not in dropped])
    return rests


def _parts(messages: Sequence[ChatMessage]) -> list[list[int]]:
    """What may be left out, in this order, as places of messages."""
    said = [index for index, message in enumerate(messages) if message["role"] not in ("system", "developer")]
    turns = _split(said, messages, "user")
    if not turns:
        return []
    last = turns[-1][1:] if messages[turns[-1][0]]["role"] == "user" else turns[-1]
    return [*turns[:-1], *_split(last, messages, "assistant")[:-1]]


def _split(places: Sequence[int], messages: Sequence[ChatMessage], role: str) -> list[list[int]]:
    """Runs that begin with a message of this role; the first one may begin with another."""
    runs: list[list[int]] = []
    for place in places:
        if not runs or messages[place]["role"] == role:
            runs.append([])
        runs[-1].append(place)
    return runs
