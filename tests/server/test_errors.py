"""How failures are rendered: OpenAI's body, the status, the headers, and the code noted on the exchange."""

import asyncio
import json

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server import errors
from server.errors import ApiError, InvalidRequest, QueueFull, error_response
from server.middleware import ErrorBoundary
from server.telemetry.lifetime import Exchange


def every_error(base=ApiError):
    for error in base.__subclasses__():
        yield error
        yield from every_error(error)


def scope(path="/x", method="POST"):
    return {
        "type": "http", "path": path, "method": method, "headers": [], "query_string": b"",
        "state": {"exchange": Exchange(request_id="r", received=0.0)},
    }  # fmt: skip


@pytest.mark.parametrize("error", list(every_error()), ids=lambda error: error.__name__)
def test_every_error_has_openais_four_fields_and_is_noted(error):
    asked = scope()
    response = error_response(error("What, and why.", param="a[0].b", headers={"Retry-After": "7"}), asked)
    detail = json.loads(response.body)["error"]
    assert detail == {"message": "What, and why.", "type": error.type, "param": "a[0].b", "code": error.code}
    assert response.status_code == error.status >= 400
    assert response.headers["retry-after"] == "7" and response.headers["content-type"] == "application/json"
    assert asked["state"]["exchange"].error_code == error.code


def test_codes_tell_causes_apart():
    codes = [error.code for error in every_error()]
    assert len(codes) == len(set(codes)), "a code is the label of a metric"


def test_a_message_may_quote_what_has_no_utf8():
    body = error_response(InvalidRequest("got \udcff and é"), scope()).body
    assert body.isascii() and json.loads(body)["error"]["message"] == "got \udcff and é"


def test_an_error_before_there_is_an_exchange_is_answered_too():
    assert error_response(InvalidRequest("no"), {"type": "http"}).status_code == 400


@pytest.mark.parametrize(
    ("raised", "status", "code", "words"),
    [
        (HTTPException(404), 404, "not_found", "'/x'"),
        (HTTPException(405, headers={"Allow": "GET, PUT"}), 405, "method_not_allowed", "it takes GET, PUT."),
        (HTTPException(405), 405, "method_not_allowed", "/x does not take POST."),
        (HTTPException(400, "broken body"), 400, "invalid_value", "broken body"),
        (HTTPException(418, "teapot"), 418, "invalid_value", "teapot"),
        (HTTPException(502, "upstream"), 502, "internal_error", "upstream"),
    ],
)
def test_what_routing_raises_is_rendered_the_same(raised, status, code, words):
    from starlette.requests import Request

    response = asyncio.run(errors._http_error(Request(scope()), raised))
    detail = json.loads(response.body)["error"]
    assert (response.status_code, detail["code"]) == (status, code) and words in detail["message"]


def bounded(failure, begun=False):
    """What a client is sent by an application that fails, before or after its answer began; and its scope."""
    sent, asked = [], scope()

    async def failing(scope, receive, send):
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise failure

    async def send(message):
        sent.append(message)

    asyncio.run(ErrorBoundary(failing)(asked, None, send))
    return sent, asked["state"]["exchange"]


def test_the_boundary_answers_what_nobody_foresaw_without_its_text(caplog):
    sent, exchange = bounded(RuntimeError("secret"))
    assert sent[0]["status"] == 500 and b"secret" not in sent[1]["body"]
    assert exchange.error_code == "internal_error" and "secret" in caplog.text


def test_an_error_of_ours_from_a_middleware_keeps_its_status(caplog):
    sent, exchange = bounded(QueueFull("full", headers={"Retry-After": "3"}))
    assert sent[0]["status"] == 429 and (b"retry-after", b"3") in sent[0]["headers"]
    assert exchange.error_code == "queue_full" and not caplog.records


def test_an_answer_that_has_begun_is_not_followed_by_another(caplog):
    sent, exchange = bounded(RuntimeError("late"), begun=True)
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert exchange.error_code == "internal_error" and "late" in caplog.text


def test_a_client_that_left_while_it_was_sending_is_no_error(caplog):
    sent, exchange = bounded(ClientDisconnect())
    assert sent == [] and exchange.error_code is None and not caplog.records
