"""Whatever happens to a response or a message, and when: it ends once, with one last event, and nothing stays in the engine."""

import asyncio
import json
from collections import Counter

import pytest

from server.stream.sse import CLIENT_GONE
from tests.server.api.dialects.asked import events_of
from tests.server.api.scripted import Server, run
from tests.server.stream.test_one_end import CODES, INCIDENTS, incident, total

PATHS = {
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 20},
}
COMPLETE = {"/v1/responses": "response.completed", "/v1/messages": "message_stop"}
BROKEN = {"/v1/responses": "response.failed", "/v1/messages": "error"}
LENGTH = 6


def outcome(path, call, stream):
    """How the answer ended: "complete", "left" or "broken"; its form is checked."""
    assert call.task.done() and call.task.exception() is None
    status, body = call.sent[0]["status"], b"".join(message.get("body", b"") for message in call.sent).decode()
    assert Counter(message["type"] for message in call.sent)["http.response.start"] == 1
    if status == CLIENT_GONE:
        assert body == ""
        return "left"
    if status != 200:
        assert json.loads(body)["error"]["code"] in CODES.values()
        return "broken"
    if not stream:
        assert json.loads(body)["id"]
        return "complete"
    kinds = [event["type"] for event in events_of(body)]
    last = [kind for kind in kinds if kind in (COMPLETE[path], BROKEN[path])]
    if not last:
        return "left"
    assert last == kinds[-1:], "one last event, and nothing behind it"
    assert not call.sent[-1]["more_body"] or call.leave.is_set()
    assert body.count("[DONE]") == (path == "/v1/responses")
    return "complete" if last == [COMPLETE[path]] else "broken"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", INCIDENTS)
@pytest.mark.parametrize("at", [0, 3, LENGTH])
def test_an_answer_ends_once(path, stream, kind, at):
    async def ask():
        server = Server("a" * LENGTH)
        call = server.call(path, {**PATHS[path], "stream": stream})
        incident(kind, at, server, call)
        await asyncio.wait_for(call.task, 20)
        metrics = (await server.client.get("/metrics")).text
        return server, call, metrics

    server, call, metrics = run(ask)
    assert server.engine.open_count == 0 and not server.process.playing
    assert total(metrics, "headrace_sequences_finished_total") == len(server.process.requests) == 1
    ended = outcome(path, call, stream)
    assert ended in {"complete", {"none": "complete", "leaves": "left"}.get(kind, "broken")}
    if kind == "leaves" and at == 3:
        assert ended == "left" and server.process.aborted == [server.process.requests[0].request_id]
    assert total(metrics, "headrace_request_errors_total") == (ended == "broken")
    if ended == "broken":
        assert f'headrace_request_errors_total{{code="{CODES[kind]}"}} 1.0' in metrics
