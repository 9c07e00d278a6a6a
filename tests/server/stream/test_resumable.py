"""Streams that outlive their connections: what a client reads that comes back, and what becomes of one that does not."""

import asyncio
import json
import re

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from loadtest.client.sse_grammar import validate_body
from scheduler.types.messages import FinishReason, Output
from server.stream import sse
from tests.drawn import drawn
from tests.server.api.scripted import Server, hand_made, run
from tests.server.engines.test_replay import Mortal, bodies, parts
from tests.server.stream.test_event_buffer import last_id, whole_events

COMPLETIONS = "/v1/completions"
LONG = 200  # tokens; with log-probabilities their events take more than the least bound
SCORED = {"max_tokens": LONG, "logprobs": 5}


async def until(condition):
    while not condition():
        await asyncio.sleep(0)


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


def body_of(call):
    return b"".join(message.get("body", b"") for message in call.sent[1:])


def id_of(call):
    return dict(call.sent[0]["headers"])[b"x-stream-id"].decode()


class Client:
    """Asks for one resumable stream, a step of its engine at a time, and goes on with it."""

    def __init__(self, reply=None, **settings):
        self.server = Server(reply or (lambda request: [97] * 10_000), **settings)
        self.streams = self.server.context.streams

    def asks(self, path=COMPLETIONS, **fields):
        body = {"prompt": "a", "stream": True, "resumable": True, "max_tokens": 20, **fields}
        return self.server.call(path, body)

    async def asks_and_leaves(self, events=3, **fields):
        """The id of a stream of which a client has had so many events at least, and no more than has been computed."""
        call = self.asks(**fields)
        await until(lambda: last_id(body_of(call)) >= events)
        self.server.process.gate.clear()
        await turns()
        call.leave.set()
        await call.task
        return id_of(call)

    def goes_on(self):
        self.server.process.gate.set()

    def opens(self, id, after=None, method="GET"):
        headers = [] if after is None else [(b"last-event-id", str(after).encode())]
        return hand_made(self.server.app, f"/v1/streams/{id}", method=method, headers=headers)

    async def get(self, id, after=None, **headers):
        if after is not None:
            headers["last-event-id"] = str(after)
        return await self.server.client.get(f"/v1/streams/{id}", headers=headers)

    async def metric(self, name):
        text = (await self.server.client.get("/metrics")).text
        (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(value)

    async def ended(self, end):
        return await self.metric(f'headrace_resumable_streams_ended_total{{end="{end}"}}')


# --- what is read ---


class Whole:
    """An answer that was put together from its parts, as `parts` takes it."""

    status_code = 200

    def __init__(self, content):
        self.content = content
        self.text = re.sub(r"(?m)^id: \d+\n", "", content.decode())


@given(
    asked=bodies().filter(lambda asked: asked[1]["stream"]),
    per_step=st.integers(1, 3),
    dies_after=st.none() | st.integers(0, 20),
    cuts=st.lists(st.tuples(st.integers(0, 15), st.floats(0, 1)), max_size=4),
)
@hypothesis_settings(max_examples=drawn(25))
def test_wherever_connections_break_the_client_reads_what_it_would_have_read(asked, per_step, dies_after, cuts):
    """`cuts`: after so many turns, with so much of the connection's bytes come through. The engine may die in between."""
    path, body = asked

    async def ask():
        mortal = Mortal(per_step=per_step)
        server, body_now = mortal.server, {**body, "resumable": True}
        undisturbed = await server.post(path, body)
        if dies_after is not None:
            mortal.dies_after(dies_after, mortal.comes_back)
        call, kept = server.call(path, body_now), b""
        await call.started.wait()
        id = id_of(call)
        for pause, share in cuts:
            await turns(pause)
            call.leave.set()
            await call.task
            come = body_of(call)
            kept += whole_events(come[: round(share * len(come))])
            headers = [(b"last-event-id", str(last_id(kept)).encode())]
            call = hand_made(server.app, f"/v1/streams/{id}", method="GET", headers=headers)
        await call.task
        assert call.sent[0]["status"] in (200, 204)
        again = await server.client.get(f"/v1/streams/{id}")
        return undisturbed, kept + body_of(call), again.content, server

    undisturbed, put_together, again, server = run(ask)
    assert put_together == again, "once per byte"
    assert parts(Whole(put_together), body) == parts(undisturbed, body)
    assert server.engine.open_count == 0


def test_the_rest_comes_as_it_is_computed():
    async def body():
        client = Client()
        id = await client.asks_and_leaves(events=3)
        back = client.opens(id, after=2)
        await until(lambda: last_id(body_of(back)) >= 3)
        await turns()
        before = last_id(body_of(back))
        assert before < 20
        client.goes_on()
        await back.task
        assert body_of(back).startswith(b"id: 3\n") and last_id(body_of(back)) == 21
        assert await client.metric("headrace_streams_resumed_total") == 1
        assert client.server.process.aborted == []

    run(body)


def test_a_pause_is_bridged_with_comments(monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.001)

    async def body():
        client = Client()
        id = await client.asks_and_leaves()
        back = client.opens(id)
        await until(lambda: body_of(back).count(sse.KEEP_ALIVE) >= 2)
        client.goes_on()
        await back.task
        assert validate_body(body_of(back)).comments >= 2

    run(body)


def test_an_error_is_read_by_whoever_comes_back():
    async def body():
        client = Client()
        id = await client.asks_and_leaves()
        client.server.process.fail = {9: Output(request_id="", finish_reason=FinishReason.ERROR, error="out of luck")}
        client.goes_on()
        answer = await client.get(id, after=0)
        summary = validate_body(answer.content)
        assert summary.error["code"] == "generation_failed" and summary.last_id == 10
        assert await client.metric('headrace_request_errors_total{code="generation_failed"}') == 1
        assert (await client.get(id, after=10)).status_code == 204

    run(body)


def test_who_was_told_everything_is_told_that_nothing_is_left():
    async def body():
        client = Client()
        call = client.asks()
        await call.task
        id, last = id_of(call), last_id(body_of(call))
        assert (await client.get(id, after=last)).status_code == 204
        assert (await client.get(id, after=last - 1)).content == b"id: %d\ndata: [DONE]\n\n" % last

    run(body)


# --- who reads ---


def test_the_newer_reader_wins_and_the_older_is_told():
    async def body():
        client = Client()
        client.server.process.gate.clear()
        first = client.asks(max_tokens=6)
        await until(lambda: client.server.process.requests)
        client.server.process.step()
        await first.started.wait()
        second = client.opens(id_of(first), after=0)
        await first.task
        client.goes_on()
        await second.task
        assert validate_body(body_of(first)).error["code"] == "stream_taken"
        assert validate_body(body_of(second)).text == "a" * 6
        assert await client.metric('headrace_request_errors_total{code="stream_taken"}') == 0, "nobody has failed"

    run(body)


def test_a_connection_that_is_not_yet_seen_to_be_dead_holds_nobody_up():
    """It takes nothing, so what it is told never goes out."""

    async def body():
        client = Client()
        first = client.asks(max_tokens=LONG)
        await until(lambda: last_id(body_of(first)) >= 3)
        first.takes.clear()
        seen = last_id(body_of(first))
        await until(lambda: last_id(body_of(first)) > seen)
        second = client.opens(id_of(first), after=2)
        await second.task
        assert last_id(body_of(second)) == LONG + 1 and body_of(second).startswith(b"id: 3\n")
        await first.task
        assert b"stream_taken" not in body_of(first)

    run(body)


def test_only_the_key_that_asked_may_go_on():
    keys = {"api_key": ["k1", "k2", "k3"], "key_names": ["one", "one", "two"]}

    async def asked(client, **fields):
        answer = await client.server.post(
            COMPLETIONS,
            {"prompt": "a", "stream": True, "resumable": True, **fields},
            headers={"authorization": "Bearer k1"},
        )
        return answer.headers["x-stream-id"]

    async def body():
        for isolated, allowed in ((False, [200, 200, 404]), (True, [200, 404, 404])):
            client = Client(**keys, isolate_keys=isolated)
            id = await asked(client)
            answers = [await client.get(id, authorization=f"Bearer {key}") for key in keys["api_key"]]
            assert [answer.status_code for answer in answers] == allowed
            unknown = await client.get("cmpl-0", authorization="Bearer k3")
            assert answers[2].text.replace(id, "ID") == unknown.text.replace("cmpl-0", "ID")
            assert (await client.get(id)).status_code == 401
            address, headers = f"/v1/streams/{id}", {"authorization": "Bearer k3"}
            assert (await client.server.client.delete(address, headers=headers)).status_code == 404
            assert (await client.server.client.head(address, headers=headers)).status_code == 404

    run(body)


def test_head_takes_nobodys_place():
    async def body():
        client = Client()
        client.server.process.gate.clear()
        first = client.asks()
        await until(lambda: client.server.process.requests)
        client.server.process.step()
        await first.started.wait()
        head = client.opens(id_of(first), method="HEAD")
        await head.task
        assert head.sent[0]["status"] == 200 and body_of(head) == b""
        assert dict(head.sent[0]["headers"])[b"content-type"].startswith(b"text/event-stream")
        client.goes_on()
        await first.task
        assert validate_body(body_of(first)).error is None
        assert (await client.server.client.head("/v1/streams/cmpl-0")).status_code == 404

    run(body)


@pytest.mark.parametrize(
    ("headers", "query", "param", "words"),
    [
        (["x"], "", "Last-Event-ID", 'a whole number, got "x"'),
        (["-1"], "", "Last-Event-ID", "got"),
        (["1.0"], "", "Last-Event-ID", "got"),
        (["01"], "", "Last-Event-ID", "got"),
        ([""], "", "Last-Event-ID", "got"),
        (["9" * 19], "", "Last-Event-ID", "got"),
        (["²"], "", "Last-Event-ID", "got"),
        (["22"], "", "Last-Event-ID", "at most 21, the newest event so far, got 22"),
        (["1", "2"], "", "Last-Event-ID", "once, got it 2 times"),
        ([], "?lastEventId=x", "lastEventId", "got"),
        ([], "?lastEventId=1&lastEventId=1", "lastEventId", "once"),
        (["x"], "?lastEventId=1", "Last-Event-ID", "got"),
    ],
)
def test_an_id_that_is_none_is_refused(headers, query, param, words):
    async def body():
        client = Client()
        call = client.asks()
        await call.task
        sent = [("last-event-id", value.encode("latin-1")) for value in headers]
        answer = await client.server.client.get(f"/v1/streams/{id_of(call)}{query}", headers=sent)
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["param"] == param and words in error["message"]

    run(body)


def test_the_header_counts_before_the_parameter():
    async def body():
        client = Client()
        call = client.asks()
        await call.task
        address = f"/v1/streams/{id_of(call)}?lastEventId=3"
        assert (await client.server.client.get(address)).content.startswith(b"id: 4\n")
        assert (await client.server.client.get(address, headers={"last-event-id": "9"})).content.startswith(b"id: 10\n")

    run(body)


# --- what a request may say ---


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions"])
def test_a_server_that_keeps_no_streams_says_so(path):
    asked = {"prompt": "a"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "a"}]}

    async def body():
        server = Server(resume_seconds=0)
        refused = await server.post(path, {**asked, "stream": True, "resumable": True})
        assert refused.status_code == 400 and "resume_seconds is 0" in refused.json()["error"]["message"]
        whole = await Server().post(path, {**asked, "resumable": True})
        assert whole.status_code == 400 and "`resumable` needs `stream`" in whole.json()["error"]["message"]
        assert {whole.json()["error"]["param"], refused.json()["error"]["param"]} == {"resumable"}
        stream = await server.post(path, {**asked, "stream": True, "resumable": False})
        assert "x-stream-id" not in stream.headers and b"id: 1" not in stream.content

    run(body)


def test_the_access_log_tells_which_stream_it_was(caplog):
    async def body():
        client = Client(access_log=True)
        with caplog.at_level("INFO", logger="headrace.access"):
            id = await client.asks_and_leaves()
            client.goes_on()
            await client.get(id, after=2)
        return id, [record.getMessage() for record in caplog.records if record.name == "headrace.access"]

    id, (asked, went_on) = run(body)
    assert f"stream={id}" in asked and "reason=- " in asked
    assert f"stream={id}" in went_on and "reason=length" in went_on and "completion_tokens=20" in went_on
    assert json.dumps(id) not in went_on
