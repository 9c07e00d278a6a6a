"""A new endpoint is one object: made here, served, guarded, refused for, published and documented like the project's own."""

import asyncio
from typing import ClassVar

import pytest
from pydantic import Field
from starlette.responses import Response

from server import reference
from server.api.context import ServerContext
from server.api.endpoint import Call, GetEndpoint, PostEndpoint, json_response
from server.api.endpoints import ENDPOINTS
from server.api.tenants import Tenant
from server.errors import InvalidRequest
from server.schema.answers import AnswerBody
from server.schema.base import Body
from server.schema.fields import Text
from tests.server.api.scripted import Server, run

KEYS = {"api_key": ["sesame"], "key_names": ["ann"]}
GREETED = {"authorization": "Bearer sesame"}
PATH = "/v1/echo_length"


class EchoRequest(Body):
    UNSUPPORTED: ClassVar = {"language": ("any",)}

    text: Text = Field(description="What to measure.")
    times: int = Field(1, ge=1, le=9, description="How often it is repeated.")


class EchoAnswer(AnswerBody):
    length: int
    tenant: str | None


def measured(body: EchoRequest, context: ServerContext, tenant: Tenant) -> EchoAnswer:
    if "\n" in body.text:
        raise InvalidRequest(f"`text` must be one line, got {body.text.count(chr(10)) + 1}", param="text")
    return EchoAnswer(length=len(body.text) * body.times, tenant=tenant.name)


async def answer(echo: EchoAnswer, call: Call) -> Response:
    return json_response(echo, call.headers)


async def chime(call: Call) -> EchoAnswer:
    return EchoAnswer(length=0, tenant=call.tenant.name)


ECHO = PostEndpoint(
    path=PATH,
    tag="toys",
    summary="Measure a text",
    body=EchoRequest,
    validate=measured,
    answer=answer,
    answers=EchoAnswer,
    errors=(400, 401),
    examples={"short": {"value": {"text": "abc"}}},
)
OPEN = GetEndpoint(
    path="/chime", tag="toys", summary="Ring", answer=chime, answers=EchoAnswer, needs_key=False, while_draining=True
)


def served(**settings):
    return Server(endpoints=[*ENDPOINTS, ECHO, OPEN], **settings)


def asked(body, headers=None, **settings):
    return run(lambda: served(**settings).post(PATH, body, headers=headers or {}))


def test_it_is_served_beside_the_projects_own():
    async def both():
        server = served()
        return await server.post(PATH, {"text": "abc", "times": 2}), await server.post(
            "/v1/completions", {"prompt": "a"}
        )

    echo, completion = run(both)
    assert echo.status_code == 200 and echo.json() == {"length": 6, "tenant": None}
    assert echo.headers["content-type"] == "application/json" and echo.headers["x-request-id"]
    assert completion.json()["choices"][0]["text"] == "Hello, wörld!"


def test_a_key_opens_it_and_names_its_tenant():
    assert asked({"text": "abc"}, **KEYS).json()["error"]["code"] == "invalid_api_key"
    assert asked({"text": "abc"}, GREETED, **KEYS).json() == {"length": 3, "tenant": "ann"}


@pytest.mark.parametrize(
    ("body", "param", "code", "words"),
    [
        ({}, "text", "invalid_value", ["is required"]),
        ({"text": 5}, "text", "invalid_value", ["must be a string", "5"]),
        ({"text": "a", "times": 10}, "times", "invalid_value", ["at most 9", "10"]),
        ({"text": "a", "tims": 1}, "tims", "unknown_field", ["`times`"]),
        ({"text": "a", "language": "en"}, "language", "unsupported_field", ['"en"', '"any"']),
        ({"text": "a\nb"}, "text", "invalid_value", ["one line", "2"]),
        (b"{", None, "invalid_value", ["not JSON"]),
    ],
)
def test_refusals_name_the_field_the_limit_and_the_value(body, param, code, words):
    response = asked(body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)
    assert all(word in error["message"] for word in words)


def test_operator_settings_apply():
    assert asked({"text": "a" * 1000}, max_body_bytes=1024).status_code == 200
    assert asked({"text": "a" * 1024}, max_body_bytes=1024).json()["error"]["code"] == "body_too_large"
    ignoring = asked({"text": "a", "tims": 1}, unknown_fields="ignore")
    assert ignoring.status_code == 200 and "tims" in ignoring.headers["warning"]


def test_what_it_says_of_keys_and_draining_is_done():
    async def drained():
        server = served(**KEYS)
        server.context.drain.begin()
        return await server.client.get("/chime"), await server.post(PATH, {"text": "a"}, headers=GREETED)

    chimed, echoed = run(drained)
    assert chimed.status_code == 200
    assert echoed.status_code == 503 and "shutting down" in echoed.json()["error"]["message"]


def test_what_it_says_holds_for_its_method_and_for_every_path_of_its_pattern():
    opened = GetEndpoint(path="/both", tag="toys", summary="Ring", answer=chime, needs_key=False, while_draining=True)
    named = GetEndpoint(path="/toys/{name:path}", tag="toys", summary="Ring", answer=chime, needs_key=False)
    guarded = PostEndpoint(
        path="/both", tag="toys", summary="Measure", body=EchoRequest, validate=measured, answer=answer
    )

    async def statuses():
        server = Server(endpoints=[opened, guarded, named], **KEYS)
        without = [
            await server.client.get("/both"),
            await server.client.head("/both"),
            await server.client.get("/toys/a/b"),
        ]
        refused = [
            await server.post("/both", {"text": "a"}),
            await server.client.post("/toys/a"),
            await server.client.get("/a"),
        ]
        server.context.drain.begin()
        late = [await server.client.get("/both"), await server.post("/both", {"text": "a"}, headers=GREETED)]
        return [[response.status_code for response in each] for each in (without, refused, late)]

    assert run(statuses) == [[200, 200, 200], [401, 401, 401], [200, 503]]


def test_the_gate_waits_for_what_does_not_stay_open_while_draining():
    async def wait():
        begun, go = asyncio.Event(), asyncio.Event()

        async def slow(echo, call):
            begun.set()
            await go.wait()
            return json_response(echo)

        toy = PostEndpoint(path="/slow", tag="toys", summary="Wait", body=EchoRequest, validate=measured, answer=slow)
        server = Server(endpoints=[toy])
        task = asyncio.create_task(server.post("/slow", {"text": "a"}))
        await begun.wait()
        assert not await server.context.drain.idle(0)
        go.set()
        assert (await task).status_code == 200
        return await server.context.drain.idle(60)

    assert run(wait)


def test_openapi_and_the_page_have_it():
    document = run(lambda: served().client.get("/openapi.json")).json()
    operation = document["paths"][PATH]["post"]
    assert operation["summary"] == "Measure a text" and operation["tags"] == ["toys"]
    assert set(operation["responses"]) == {"200", "400", "401"}
    content = operation["requestBody"]["content"]["application/json"]
    assert content["schema"]["properties"]["times"]["anyOf"][0]["maximum"] == 9
    assert content["examples"] == {"short": {"value": {"text": "abc"}}}
    assert document["components"]["schemas"]["EchoAnswer"]["properties"].keys() == {"length", "tenant"}
    page = reference.page([*ENDPOINTS, ECHO, OPEN])
    assert f"| `POST {PATH}` | Measure a text | yes |" in page and "| `GET /chime` | Ring | no |" in page
    assert f"## Fields of {PATH}" in page and "| `times` | integer, 1 to 9 | `1` | How often it is repeated. |" in page
    assert f'| {PATH} | `language` | `"any"` |' in page


def test_without_the_list_nothing_is_served():
    async def nothing():
        server = Server(endpoints=[])
        return [(await server.client.get(path)).status_code for path in ("/live", "/v1/models", "/openapi.json")]

    assert run(nothing) == [404, 404, 200]
