"""`/v1/streams/{stream}`: go on with a resumable stream where its connection broke, or end it."""

import re

from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response

from server.api.answers.answer import STREAM
from server.api.endpoint import Call, DeleteEndpoint, GetEndpoint
from server.errors import InvalidRequest
from server.schema.answers import DeletedStream
from server.schema.shown import shown
from server.stream.resumable import ResumableStream
from server.stream.resumable_answer import STREAM_ID, ResumableAnswer
from server.stream.sse import EVENT_HEADERS

HEADER, PARAMETER = "Last-Event-ID", "lastEventId"
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


def position_of(headers: Headers, query: QueryParams, last: int) -> int:
    """The number of the event that the client had last; 0 if it says nothing. The header counts before the parameter, since a
    browser's EventSource connects again with the address it was given and a header of its own.

    Args:
        headers, query: of the request.
        last: number of the newest event.

    Raises:
        InvalidRequest: it is no number of an event.
    """
    name, given = HEADER, headers.getlist(HEADER)
    if not given:
        name, given = PARAMETER, query.getlist(PARAMETER)
    if not given:
        return 0
    if len(given) > 1:
        raise InvalidRequest(f"`{name}` must be given once, got it {len(given)} times", param=name)
    if not _NUMBER.fullmatch(given[0]):
        raise InvalidRequest(f"`{name}` must be the id of an event, a whole number, got {shown(given[0])}", param=name)
    if int(given[0]) > last:
        raise InvalidRequest(f"`{name}` must be at most {last}, the newest event so far, got {given[0]}", param=name)
    return int(given[0])


def _asked_for(call: Call) -> ResumableStream:
    stream = call.context.streams.find(call.request.path_params["stream"], call.tenant)
    call.exchange.stream = stream.id
    return stream


async def _go_on(call: Call) -> Response:
    stream = _asked_for(call)
    position = position_of(call.request.headers, call.request.query_params, stream.last)
    stream.check(position)
    over = stream.complete and position == stream.last
    if call.is_head:
        return _head_of(stream, over)
    if over:  # tells an EventSource not to connect again
        stream.acknowledge()
        return Response(status_code=204)
    answer = ResumableAnswer(stream, call.exchange, {}, position=position, resumes=True)
    call.exchange.lifetimes = stream.lifetimes
    call.context.streams.resumed()
    return answer


def _head_of(stream: ResumableStream, over: bool) -> Response:
    """What a GET would begin with. It takes nobody's place."""
    if over:
        return Response(status_code=204)
    head = Response(media_type=ResumableAnswer.media_type, headers={**EVENT_HEADERS, STREAM_ID: stream.id})
    del head.headers["content-length"]
    return head


async def _delete(call: Call) -> DeletedStream:
    stream = _asked_for(call)
    call.context.streams.delete(stream)
    return DeletedStream(id=stream.id)


_ID = {"name": "stream", "in": "path", "required": True, "schema": {"type": "string"}}
_LAST = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
_SAYS = "Id of the last event that was received; all events if absent."

ENDPOINTS = (
    GetEndpoint(
        path="/v1/streams/{stream}",
        tag="generate",
        summary="Go on with a resumable stream behind the event `Last-Event-ID`",
        answer=_go_on,
        errors=(400, 401, 404, 410),
        content=STREAM,
        empty="All events have been received: there is nothing to come back for.",
        parameters=(
            _ID,
            {"name": HEADER, "in": "header", "schema": _LAST, "description": _SAYS},
            {
                "name": PARAMETER,
                "in": "query",
                "schema": _LAST,
                "description": f"The same, without the header. {_SAYS}",
            },
        ),
        while_draining=True,
    ),
    DeleteEndpoint(
        path="/v1/streams/{stream}",
        tag="generate",
        summary="End a resumable stream, and forget it",
        answer=_delete,
        answers=DeletedStream,
        errors=(401, 404),
        parameters=(_ID,),
        while_draining=True,
    ),
)
