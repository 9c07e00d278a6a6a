"""However a request ends early: the client leaves, the engine fails or dies, the server stops, the queue is full."""

import asyncio
import json

import pytest

from loadtest.client.sse_grammar import validate_body
from scheduler.types.messages import FinishReason, Output
from server.api.completions import CompletionFormat
from server.stream import sse
from tests.server.api.scripted import Server, run

USER = {"role": "user", "content": "hi"}
ROUTES = {"/v1/completions": {"prompt": "abc"}, "/v1/chat/completions": {"messages": [USER]}}
COMPLETIONS = "/v1/completions"
PATHS = pytest.mark.parametrize("path", ROUTES)
STREAM = pytest.mark.parametrize("stream", [False, True])


async def until(condition):
    while not condition():
        await asyncio.sleep(0)


def body_of(call):
    return b"".join(message.get("body", b"") for message in call.sent)


def status_of(call):
    return call.sent[0]["status"]


@PATHS
@STREAM
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_frees_its_sequences(path, stream, n):
    async def leave():
        server = Server(lambda request: [97] * 10_000)
        call = server.call(path, {**ROUTES[path], "n": n, "stream": stream, "max_tokens": 200})
        await until(lambda: server.process.steps == 3)
        call.leave.set()
        await asyncio.wait_for(call.task, 5)
        return server, call

    server, call = run(leave)
    assert server.process.steps < 10
    assert sorted(server.process.aborted) == sorted(request.request_id for request in server.process.requests)
    assert server.engine.open_count == 0 and not server.process.playing
    assert b"[DONE]" not in body_of(call)


@STREAM
def test_a_client_that_leaves_before_the_first_token(stream):
    async def leave():
        server = Server()
        server.process.gate.clear()
        call = server.call(COMPLETIONS, {"prompt": "a", "n": 2, "stream": stream})
        await until(lambda: len(server.process.requests) == 2)
        call.leave.set()
        await asyncio.wait_for(call.task, 5)
        server.process.task.cancel()
        return server, call

    server, call = run(leave)
    assert len(server.process.aborted) == 2 and server.engine.open_count == 0
    assert status_of(call) == sse.CLIENT_GONE and body_of(call) == b""


def test_a_connection_that_breaks_while_it_is_written_to():
    async def breaks():
        server = Server(lambda request: [97] * 10_000)
        writes = []

        async def app(scope, receive, send):
            async def broken(message):
                writes.append(message)
                if len(writes) == 3:
                    raise OSError("connection reset")

            await server.app(scope, receive, broken)

        call = server.call(COMPLETIONS, {"prompt": "a", "stream": True, "max_tokens": 200}, app=app)
        await asyncio.wait_for(call.task, 5)
        return server, writes

    server, writes = run(breaks)
    assert len(writes) == 3
    assert len(server.process.aborted) == 1 and server.engine.open_count == 0


def failing(after, reason=FinishReason.ERROR, error="out of luck", **fields):
    """The response if the engine ends the first sequence after this many tokens."""

    async def ask():
        server = Server("abcdef")
        server.process.fail[after] = Output(request_id="", finish_reason=reason, error=error)
        response = await server.post(COMPLETIONS, {"prompt": "a", **fields})
        return server, response

    return run(ask)


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [(FinishReason.ERROR, 500, "generation_failed"), (FinishReason.ABORT, 503, "unavailable")],
)
def test_a_failed_sequence_without_stream(after, n, reason, status, code):
    server, response = failing(after, reason, n=n)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert "out of luck" in response.json()["error"]["message"]
    assert server.engine.open_count == 0


@pytest.mark.parametrize("n", [1, 2])
def test_a_failure_before_the_first_token_of_a_stream_has_its_own_status(n):
    server, response = failing(0, n=n, stream=True)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "generation_failed"
    assert server.engine.open_count == 0


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    ("reason", "code"), [(FinishReason.ERROR, "generation_failed"), (FinishReason.ABORT, "unavailable")]
)
def test_a_failure_within_a_stream_is_its_last_event(n, reason, code):
    server, response = failing(3, reason, n=n, stream=True, stream_options={"include_usage": True})
    assert response.status_code == 200
    summary = validate_body(response.content, choices=n, include_usage=True)
    assert summary.error["code"] == code and summary.text == "abc"
    assert server.engine.open_count == 0


@PATHS
@pytest.mark.parametrize(("stream", "begun"), [(False, False), (True, False), (True, True)])
def test_the_engine_dies_for_good(path, stream, begun):
    async def die():
        server = Server("a" * 100)
        server.process.gate.clear()
        call = server.call(path, {**ROUTES[path], "stream": stream, "max_tokens": 90})
        await until(lambda: server.process.requests)
        if begun:
            server.process.step()
            await call.started.wait()
        server.process.task.cancel()
        server.incarnations.detach("killed")
        server.incarnations.give_up()
        await asyncio.wait_for(call.task, 5)
        metrics = (await server.client.get("/metrics")).text
        return call, metrics

    call, metrics = run(die)
    if begun:
        assert status_of(call) == 200
        assert validate_body(body_of(call)).error["code"] == "engine_died"
    else:
        assert status_of(call) == 503
        assert json.loads(body_of(call))["error"]["code"] == "engine_died"
        assert b"retry-after" in dict(call.sent[0]["headers"])
    assert 'code="engine_died"} 1.0' in metrics


@STREAM
def test_the_server_ends_what_is_open_with_its_reason(stream):
    async def stop():
        server = Server("a" * 100)
        call = server.call(COMPLETIONS, {"prompt": "a", "stream": stream, "max_tokens": 90})
        await until(lambda: server.process.steps == 2)
        server.engine.abort_all("the server is shutting down")
        await asyncio.wait_for(call.task, 5)
        return call

    call = run(stop)
    if stream:
        error = validate_body(body_of(call)).error
    else:
        assert status_of(call) == 503
        error = json.loads(body_of(call))["error"]
    assert error["code"] == "unavailable" and "shutting down" in error["message"]


@STREAM
def test_a_full_queue(stream):
    async def fill():
        server = Server("a" * 100, max_waiting=2)
        server.process.gate.clear()
        calls = [server.call(COMPLETIONS, {"prompt": "a"}) for _ in range(2)]
        await until(lambda: len(server.process.requests) == 2)
        refused = await server.post(COMPLETIONS, {"prompt": "a", "stream": stream})
        server.process.gate.set()
        await asyncio.gather(*(call.task for call in calls))
        served = await server.post(COMPLETIONS, {"prompt": "a", "stream": stream})
        return refused, served, len(server.process.requests)

    refused, served, submitted = run(fill)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"
    assert served.status_code == 200 and submitted == 3


@PATHS
def test_before_the_engine_is_ready(path):
    async def early():
        return await Server(ready=False).post(path, ROUTES[path])

    response = run(early)
    assert response.status_code == 503 and "retry-after" in response.headers


def test_a_long_wait_is_bridged_with_comments(monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.001)

    async def wait():
        server = Server("abc")
        server.process.gate.clear()
        call = server.call(COMPLETIONS, {"prompt": "a", "stream": True})
        await until(lambda: body_of(call).count(sse.KEEP_ALIVE) >= 2)
        server.process.gate.set()
        await asyncio.wait_for(call.task, 5)
        return call

    summary = validate_body(body_of(run(wait)))
    assert summary.text == "abc" and summary.comments >= 2


def test_a_pause_within_a_stream_is_bridged_with_comments(monkeypatch):
    """As one is in which another engine goes on."""
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.001)

    async def wait():
        server = Server("abc")
        server.process.gate.clear()
        call = server.call(COMPLETIONS, {"prompt": "a", "stream": True})
        await until(lambda: server.process.requests)
        server.process.step()
        await until(lambda: b'"a"' in body_of(call))
        begun = body_of(call).count(sse.KEEP_ALIVE)
        await until(lambda: body_of(call).count(sse.KEEP_ALIVE) >= begun + 2)
        server.process.gate.set()
        await asyncio.wait_for(call.task, 5)
        return call

    assert validate_body(body_of(run(wait))).text == "abc"


def test_a_client_that_leaves_while_it_waits(monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.001)

    async def leave():
        server = Server("abc")
        server.process.gate.clear()
        call = server.call(COMPLETIONS, {"prompt": "a", "stream": True})
        await until(lambda: sse.KEEP_ALIVE in body_of(call))
        call.leave.set()
        await asyncio.wait_for(call.task, 5)
        server.process.task.cancel()
        return server

    server = run(leave)
    assert len(server.process.aborted) == 1 and server.engine.open_count == 0


def test_a_defect_of_ours_ends_the_stream_with_an_error_event(monkeypatch, caplog):
    def broken(self, delta):
        raise RuntimeError("a defect")

    monkeypatch.setattr(CompletionFormat, "chunks", broken)

    async def ask():
        server = Server("abc")
        return server, await server.post(COMPLETIONS, {"prompt": "a", "stream": True})

    server, response = run(ask)
    summary = validate_body(response.content)
    assert summary.error["code"] == "internal_error" and "defect" not in summary.error["message"]
    assert "a defect" in caplog.text
    assert server.engine.open_count == 0


def test_requests_do_not_disturb_each_other():
    async def mixed():
        server = Server(lambda request: request.prompt_ids * 3)
        bodies = [
            {"prompt": chr(97 + i) * 5, "max_tokens": 12, "n": 1 + i % 3, "stream": i % 2 == 0} for i in range(12)
        ]
        formats = await asyncio.gather(*(server.post(COMPLETIONS, body) for body in bodies))
        return server, bodies, formats

    server, bodies, answers = run(mixed)
    for body, answer in zip(bodies, answers, strict=True):
        if body["stream"]:
            texts = [choice.text for choice in validate_body(answer.content, choices=body["n"]).choices.values()]
        else:
            texts = [choice["text"] for choice in answer.json()["choices"]]
        assert texts == [body["prompt"][0] * 12] * body["n"]
    assert server.engine.open_count == 0
