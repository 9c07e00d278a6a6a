"""Whatever happens, when it happens: a request ends once, its sequences are counted once, and nothing stays in the engine."""

import asyncio
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from loadtest.client.sse_grammar import validate_body
from scheduler.types.messages import FinishReason, Output
from server.api.answers import formats
from server.stream import sse
from server.stream.sse import CLIENT_GONE
from tests.drawn import drawn
from tests.server.api.scripted import Server, run

PATHS = {"/v1/completions": {"prompt": "abc"}, "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]}}
INCIDENTS = ("none", "error", "abort", "dies", "stops", "leaves")
CODES = {"error": "generation_failed", "abort": "unavailable", "dies": "engine_died", "stops": "unavailable"}


def incident(kind: str, at: int, server: Server, call) -> None:
    """Let it happen before the step of this number."""
    if kind in ("error", "abort"):
        reason = FinishReason.ERROR if kind == "error" else FinishReason.ABORT
        server.process.fail[at] = Output(request_id="", finish_reason=reason, error="scripted")
        return
    happen = {
        "none": lambda: None,
        "dies": lambda: (server.incarnations.detach("killed"), server.incarnations.give_up()),
        "stops": lambda: server.engine.abort_all("the server is shutting down"),
        "leaves": call.leave.set,
    }[kind]
    step = server.process.step

    def stepping():
        if server.process.steps == at:
            happen()
            if kind == "dies":
                server.process.playing.clear()
                return
        step()

    server.process.step = stepping


def total(metrics: str, name: str) -> int:
    lines = [line for line in metrics.splitlines() if line.startswith(f"{name}{{")]
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines)


def outcome(call, stream: bool, n: int, usage: bool) -> str:
    """How the answer ended: "complete", "left" or the code of its error; its form is checked."""
    assert call.task.done() and call.task.exception() is None
    status, body = call.sent[0]["status"], b"".join(message.get("body", b"") for message in call.sent)
    assert Counter(message["type"] for message in call.sent)["http.response.start"] == 1
    if status == CLIENT_GONE:
        assert body == b""
        return "left"
    if status != 200:
        return json.loads(body)["error"]["code"]
    if not stream:
        assert len(json.loads(body)["choices"]) == n
        return "complete"
    if b"[DONE]" not in body and b'"error"' not in body:
        return "left"
    assert not call.sent[-1]["more_body"]
    summary = validate_body(body, choices=n, include_usage=usage)
    return summary.error["code"] if summary.error else "complete"


@pytest.mark.parametrize("path", PATHS)
@given(
    stream=st.booleans(),
    usage=st.booleans(),
    n=st.integers(1, 3),
    length=st.integers(1, 12),
    per_step=st.integers(1, 4),
    kind=st.sampled_from(INCIDENTS),
    at=st.integers(0, 12),
)
@hypothesis_settings(max_examples=drawn(40))
def test_a_request_ends_once(path, stream, usage, n, length, per_step, kind, at):
    async def ask():
        server = Server("a" * length)
        server.process.per_step = per_step
        body = {**PATHS[path], "n": n, "stream": stream, "max_tokens": 20}
        if stream and usage:
            body["stream_options"] = {"include_usage": True}
        call = server.call(path, body)
        incident(kind, at, server, call)
        await asyncio.wait_for(call.task, 20)
        metrics = (await server.client.get("/metrics")).text
        return server, call, metrics

    server, call, metrics = run(ask)
    assert server.engine.open_count == 0 and not server.process.playing
    assert total(metrics, "headrace_sequences_finished_total") == len(server.process.requests) == n
    ended = outcome(call, stream, n, stream and usage)
    assert ended in {"complete", "left" if kind == "leaves" else CODES.get(kind, "complete")}
    assert total(metrics, "headrace_request_errors_total") == (ended in CODES.values())
    if ended in CODES.values():
        assert f'headrace_request_errors_total{{code="{ended}"}} 1.0' in metrics


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "place", ["AnswerFormat.__init__", "ChunkWriter.__init__", "EventStream.__init__", "EventStream.start"]
)
def test_a_failure_before_the_stream_has_started_leaves_nothing_in_the_engine(path, place, monkeypatch):
    def fails(*arguments):
        raise ZeroDivisionError(place)

    async def body():
        server = Server("Hello")
        owner, method = place.split(".")
        monkeypatch.setattr({"EventStream": sse}.get(owner, formats).__dict__[owner], method, fails)
        answer = await server.post(path, {**PATHS[path], "stream": True, "n": 2})
        assert answer.status_code == 500
        assert server.engine.open_count == 0
        assert sorted(server.process.aborted) == sorted(request.request_id for request in server.process.requests)

    run(body)
