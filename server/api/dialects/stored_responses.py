"""`/v1/responses/{response}`: a response that is stored or runs in the background, its events, what it was asked with, its end."""

from typing import Any

from starlette.responses import Response

from server.api.answers.answer import STREAM
from server.api.dialects.parts import encode
from server.api.endpoint import ActionEndpoint, Call, DeleteEndpoint, GetEndpoint
from server.api.requests.query import one_of, parameter, whole_number
from server.errors import InvalidRequest
from server.schema.base import Body
from server.schema.dialects.responses_answers import DeletedResponse, InputItems, ResponseAnswer
from server.schema.shown import shown
from server.stream.background import BackgroundResponse
from server.stream.event_log import EventLog, FollowedAnswer
from server.stream.response_store import StoredResponse

MOST_ITEMS, ITEMS = 100, 20


def _running(call: Call) -> BackgroundResponse | None:
    return call.context.background.find(call.request.path_params["response"], call.tenant.name)


def _stored(call: Call) -> StoredResponse:
    return call.context.responses.find(call.request.path_params["response"], call.tenant.name)


async def _one(call: Call) -> Response:
    found, query = _running(call) or _stored(call), call.request.query_params
    stream, after = query.get("stream", "false"), query.get("starting_after")
    if stream not in ("true", "false"):
        raise InvalidRequest(f"`stream` must be true or false, got {shown(stream)}", param="stream")
    if stream == "true":
        return _followed(found.events, after)
    if after is not None:
        raise InvalidRequest(f"`starting_after` needs `stream` to be true, got {shown(after)}", param="starting_after")
    return Response(encode(found.answer), media_type="application/json")


def _followed(events: EventLog | None, after: str | None) -> Response:
    if events is None:
        raise InvalidRequest(
            "`stream` must be false: events are kept of a response that was asked for with `background` and `stream`",
            param="stream",
        )
    if after is not None and not (
        after.isascii() and after.isdecimal() and len(after) < 10 and int(after) <= events.last
    ):
        what = f"must be the number of an event, 0 to {events.last} so far"
        raise InvalidRequest(f"`starting_after` {what}, got {shown(after)}", param="starting_after")
    number = -1 if after is None else int(after)
    events.check(number)
    return FollowedAnswer(events, number, {})


async def _cancel(call: Call) -> Response:
    if running := _running(call):
        await running.cancel()
    answer = _stored(call).answer
    if not answer["background"]:
        raise InvalidRequest("Only a response that was asked for with `background` can be cancelled.")
    return Response(encode(answer), media_type="application/json")


async def _delete(call: Call) -> DeletedResponse:
    if running := _running(call):
        await running.cancel()
    name = call.request.path_params["response"]
    call.context.responses.delete(name, call.tenant.name)
    return DeletedResponse(id=name)


async def _items(call: Call) -> InputItems:
    query, found = call.request.query_params, _running(call) or _stored(call)
    limit = whole_number(query, "limit", ITEMS, MOST_ITEMS)
    order = one_of(query, "order", "desc", ("asc", "desc"))
    items = [_item(name, item) for name, item in list(found.items().items())[: len(found.asked)]]
    if order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    after = query.get("after")
    if after is not None and after not in ids:
        raise InvalidRequest(f"`after` must be the id of one of its items, got {shown(after)}", param="after")
    start = 0 if after is None else ids.index(after) + 1
    data = items[start : start + limit]
    return InputItems(
        data=data,
        first_id=data[0]["id"] if data else None,
        last_id=data[-1]["id"] if data else None,
        has_more=start + limit < len(items),
    )


def _item(name: str, item: Body) -> dict[str, Any]:
    return {"id": name, "status": "completed", **item.model_dump(exclude_none=True, warnings=False)}


_ID = {"name": "response", "in": "path", "required": True, "schema": {"type": "string"}}

ENDPOINTS = (
    GetEndpoint(
        path="/v1/responses/{response}",
        tag="generate",
        summary="A response that is stored or runs in the background, or its events behind `starting_after`",
        answer=_one,
        answers=ResponseAnswer,
        errors=(400, 401, 404, 410),
        content=STREAM,
        parameters=(
            _ID,
            {
                "name": "stream",
                "in": "query",
                "schema": {"type": "boolean"},
                "description": "Its events; false if absent.",
            },
            {
                "name": "starting_after",
                "in": "query",
                "schema": {"type": "integer", "minimum": 0},
                "description": "`sequence_number` of the last event that was received; all events if absent.",
            },
        ),
        while_draining=True,
    ),
    ActionEndpoint(
        path="/v1/responses/{response}/cancel",
        tag="generate",
        summary="End a response that runs in the background",
        answer=_cancel,
        answers=ResponseAnswer,
        errors=(400, 401, 404),
        parameters=(_ID,),
        while_draining=True,
    ),
    DeleteEndpoint(
        path="/v1/responses/{response}",
        tag="generate",
        summary="Forget a stored response, or end one that runs in the background",
        answer=_delete,
        answers=DeletedResponse,
        errors=(401, 404),
        parameters=(_ID,),
    ),
    GetEndpoint(
        path="/v1/responses/{response}/input_items",
        tag="generate",
        summary="The items that a stored response was asked with",
        answer=_items,
        answers=InputItems,
        errors=(400, 401, 404),
        parameters=(
            _ID,
            parameter("after", "Id of the item before the first.", type="string"),
            parameter("limit", f"Items of a page; {ITEMS} if absent.", type="integer", minimum=1, maximum=MOST_ITEMS),
            parameter("order", "`desc` if absent.", enum=["asc", "desc"]),
        ),
    ),
)
