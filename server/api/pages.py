"""`GET /`, the playground, and `GET /map`, the live map.

Pages need no key: they hold nothing but themselves, and ask for all else with the reader's key.
"""

from starlette.responses import Response

from server.api.endpoint import Call, GetEndpoint, json_response
from server.pages.page import page
from server.schema.answers import IndexAnswer


async def _index(call: Call) -> Response:
    if call.context.settings.playground:
        return page("playground").response(call.request.headers)
    return json_response(IndexAnswer(name="headrace", openapi="/openapi.json", models="/v1/models"))


async def _map(call: Call) -> Response:
    return page("map").response(call.request.headers)


HTML = {"text/html": {"schema": {"type": "string"}}}
INDEX = GetEndpoint(
    path="/",
    tag="pages",
    summary="A page to try the model on; with `--no-playground` JSON that says where to look next",
    answer=_index,
    content={**HTML, "application/json": {"schema": IndexAnswer.model_json_schema()}},
    needs_key=False,
    while_draining=True,
)
MAP = GetEndpoint(
    path="/map",
    tag="pages",
    summary="A page that shows what the engines do while they do it: blocks, requests, steps, tiers",
    answer=_map,
    content=HTML,
    needs_key=False,
    while_draining=True,
)
