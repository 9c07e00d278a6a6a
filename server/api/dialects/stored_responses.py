"""`/v1/responses/{response}`: a stored response, what it was asked with, and its end."""

from typing import Any

from starlette.responses import Response

from server.api.dialects.parts import encode
from server.api.endpoint import Call, DeleteEndpoint, GetEndpoint
from server.errors import InvalidRequest
from server.schema.base import Body
from server.schema.dialects.responses_answers import DeletedResponse, InputItems, ResponseAnswer
from server.schema.shown import shown
from server.stream.response_store import StoredResponse

MOST_ITEMS, ITEMS = 100, 20


def _asked_for(call: Call) -> StoredResponse:
    return call.context.responses.find(call.request.path_params["response"], call.tenant.name)


async def _one(call: Call) -> Response:
    if call.request.query_params.get("stream", "false") != "false":
        raise InvalidRequest("`stream` must be false: the events of a response are not kept", param="stream")
    return Response(encode(_asked_for(call).answer), media_type="application/json")


async def _delete(call: Call) -> DeletedResponse:
    name = call.request.path_params["response"]
    call.context.responses.delete(name, call.tenant.name)
    return DeletedResponse(id=name)


async def _items(call: Call) -> InputItems:
    query, stored = call.request.query_params, _asked_for(call)
    limit, order = query.get("limit", str(ITEMS)), query.get("order", "desc")
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= MOST_ITEMS):
        raise InvalidRequest(f"`limit` must be 1 to {MOST_ITEMS}, got {shown(limit)}", param="limit")
    if order not in ("asc", "desc"):
        raise InvalidRequest(f'`order` must be "asc" or "desc", got {shown(order)}', param="order")
    items = [_item(name, item) for name, item in list(stored.items().items())[: len(stored.asked)]]
    if order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    after = query.get("after")
    if after is not None and after not in ids:
        raise InvalidRequest(f"`after` must be the id of one of its items, got {shown(after)}", param="after")
    start = 0 if after is None else ids.index(after) + 1
    data = items[start : start + int(limit)]
    return InputItems(
        data=data,
        first_id=data[0]["id"] if data else None,
        last_id=data[-1]["id"] if data else None,
        has_more=start + int(limit) < len(items),
    )


def _item(name: str, item: Body) -> dict[str, Any]:
    return {"id": name, "status": "completed", **item.model_dump(exclude_none=True, warnings=False)}


_ID = {"name": "response", "in": "path", "required": True, "schema": {"type": "string"}}

ENDPOINTS = (
    GetEndpoint(
        path="/v1/responses/{response}",
        tag="generate",
        summary="A stored response",
        answer=_one,
        answers=ResponseAnswer,
        errors=(400, 401, 404),
        parameters=(_ID,),
    ),
    DeleteEndpoint(
        path="/v1/responses/{response}",
        tag="generate",
        summary="Forget a stored response",
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
            {
                "name": "after",
                "in": "query",
                "schema": {"type": "string"},
                "description": "Id of the item before the first.",
            },
            {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": MOST_ITEMS}},
            {"name": "order", "in": "query", "schema": {"enum": ["asc", "desc"]}, "description": "`desc` if absent."},
        ),
    ),
)
