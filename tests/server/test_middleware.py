"""The body's limit, however its bytes arrive: nothing beyond it reaches the application, and one answer is sent."""

import asyncio
import json

from hypothesis import given
from hypothesis import strategies as st

from server.middleware import BodySizeMiddleware
from server.telemetry.lifetime import Exchange

LIMIT = 10


async def echo(scope, receive, send):
    """An application that reads the whole body and answers with its length."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


async def stubborn(scope, receive, send):
    """One that makes an answer of its own of whatever goes wrong while it reads."""
    try:
        await echo(scope, receive, send)
    except Exception:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"mine"})


def answer(app, parts, headers=()):
    """Status and body of the answer to a body that arrives in these parts, and the code that is noted."""
    arriving = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    arriving.append({"type": "http.request", "body": b"", "more_body": False})
    sent = []
    exchange = Exchange(request_id="r", received=0.0)
    scope = {"type": "http", "path": "/x", "method": "POST", "headers": list(headers), "state": {"exchange": exchange}}

    async def receive():
        return arriving.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(BodySizeMiddleware(app, lambda _: (LIMIT, "max_body_bytes"))(scope, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"], sent[1]["body"], exchange.error_code


@given(parts=st.lists(st.binary(max_size=8), max_size=6), app=st.sampled_from([echo, stubborn]))
def test_a_body_is_refused_exactly_if_its_parts_exceed_the_limit(parts, app):
    size = sum(map(len, parts))
    status, body, code = answer(app, parts)
    if size <= LIMIT:
        assert (status, body, code) == (200, str(size).encode(), None)
    else:
        assert (status, code) == (413, "body_too_large")
        assert json.loads(body)["error"]["message"] == (
            f"The request body has more than {LIMIT} bytes; the limit (max_body_bytes) is {LIMIT}."
        )


def test_a_declared_length_over_the_limit_is_refused_before_anything_is_read():
    status, body, _ = answer(echo, [], headers=[(b"content-length", b"11")])
    assert status == 413 and "has 11 bytes" in json.loads(body)["error"]["message"]


@given(declared=st.sampled_from([b"", b"-1", b"0x20", b"1e9", b"eleven"]))
def test_a_length_that_is_none_does_not_count_and_the_bytes_do(declared):
    assert answer(echo, [b"12345"], headers=[(b"content-length", declared)])[0] == 200
    assert answer(echo, [b"12345678901"], headers=[(b"content-length", declared)])[0] == 413
