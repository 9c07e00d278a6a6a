"""How long resumable streams are kept and how much of them, and what ends them before their client is back."""

import asyncio
import re

import pytest

from loadtest.client.sse_grammar import validate_body
from scheduler.types.messages import FinishReason, Output
from server.stream import sse
from tests.server.api.scripted import run
from tests.server.stream.test_resumable import COMPLETIONS, LONG, SCORED, Client, body_of, id_of, turns, until

SMALL = {"resume_bytes": 2**16, "resume_total_bytes": 2**20}


# --- who does not come back ---


@pytest.mark.parametrize("ended", [False, True])
def test_a_stream_is_kept_for_so_long_and_no_longer(ended):
    async def body():
        client = Client(resume_seconds=0.02)
        if ended:
            call = client.asks()
            await call.task
            id = id_of(call)
        else:
            id = await client.asks_and_leaves()
        await until(lambda: client.server.engine.open_count == 0)
        while (answer := await client.get(id, after=1)).status_code == 200 and ended:
            await asyncio.sleep(0.05)
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "stream_not_found"
        assert "0.02 s" in answer.json()["error"]["message"]
        assert client.server.process.aborted == [] if ended else len(client.server.process.aborted) == 1
        assert await client.ended("delivered" if ended else "expired") == 1
        assert await client.metric("headrace_resumable_stream_bytes") == 0

    async def other_time():
        await asyncio.wait_for(body(), 20)

    run(other_time)


@pytest.mark.parametrize("begun", [False, True])
def test_who_leaves_before_the_answer_has_begun_ends_it(begun, monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.001 if begun else 60)

    async def body():
        client = Client()
        client.server.process.gate.clear()
        call = client.asks()
        await until(lambda: client.server.process.requests)
        if begun:
            await call.started.wait()
        call.leave.set()
        await call.task
        assert client.server.engine.open_count == begun
        if begun:
            client.goes_on()
            assert validate_body((await client.get(id_of(call))).content).text == "a" * 20
        else:
            assert call.sent[0]["status"] == sse.CLIENT_GONE
            assert await client.metric("headrace_resumable_streams") == 0
            client.server.process.task.cancel()

    run(body)


def test_a_failure_before_the_first_token_has_its_own_status():
    async def body():
        client = Client()
        client.server.process.fail = {0: Output(request_id="", finish_reason=FinishReason.ERROR, error="out of luck")}
        answer = await client.server.post(COMPLETIONS, {"prompt": "a", "stream": True, "resumable": True})
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "generation_failed"
        assert await client.metric("headrace_resumable_stream_bytes") == 0

    run(body)


def test_a_stream_is_deleted_at_once_and_its_reader_told():
    async def body():
        client = Client()
        client.server.process.gate.clear()
        call = client.asks()
        await until(lambda: client.server.process.requests)
        client.server.process.step()
        await call.started.wait()
        deleted = await client.server.client.delete(f"/v1/streams/{id_of(call)}")
        assert deleted.json() == {"id": id_of(call), "object": "stream", "deleted": True}
        await call.task
        assert validate_body(body_of(call)).error["code"] == "stream_deleted"
        assert client.server.engine.open_count == 0 and len(client.server.process.aborted) == 1
        assert (await client.get(id_of(call))).status_code == 404
        assert (await client.server.client.delete(f"/v1/streams/{id_of(call)}")).status_code == 404
        assert await client.ended("deleted") == 1

    run(body)


# --- how much is kept ---


def test_a_client_that_is_away_for_more_than_is_kept_reads_that_much_and_an_error():
    async def body():
        client = Client(**SMALL)
        id = await client.asks_and_leaves(**SCORED)
        client.goes_on()
        await until(lambda: client.server.engine.open_count == 0)
        held = await client.metric("headrace_resumable_stream_bytes")
        answer = await client.get(id, after=0)
        summary = validate_body(answer.content)
        assert 2**15 < held < 2**16 + 4096
        assert summary.error["code"] == "stream_overrun" and "65536 bytes (resume_bytes)" in summary.error["message"]
        assert 20 < len(summary.text) < LONG and len(client.server.process.aborted) == 1
        await client.server.client.delete(f"/v1/streams/{id}")
        assert await client.ended("overrun") == 1

    run(body)


def test_what_was_read_long_ago_is_not_kept():
    async def body():
        client = Client(**SMALL)
        call = client.asks(**SCORED)
        await call.task
        assert validate_body(body_of(call)).text == "a" * LONG
        answer = await client.get(id_of(call), after=1)
        error = answer.json()["error"]
        assert answer.status_code == 410 and error["code"] == "events_dropped"
        oldest = int(re.search(r"the oldest is (\d+)", error["message"])[1])
        assert (await client.get(id_of(call), after=oldest - 1)).content.endswith(b"data: [DONE]\n\n")
        assert await client.metric("headrace_resumable_stream_bytes") < 2**15 + 4096

    run(body)


def test_an_event_that_is_larger_than_what_is_kept_goes_to_who_is_there_and_is_kept_for_nobody():
    huge = {"prompt": [97] * 200, "echo": True, "logprobs": 20, "max_tokens": 3}

    async def body():
        client = Client(resume_bytes=2**15)
        call = client.asks(**huge)
        await call.task
        assert validate_body(body_of(call)).text.endswith("aaa") and len(body_of(call)) > 2**15
        call = client.asks(**huge)
        call.takes.clear()
        await call.started.wait()
        call.leave.set()
        await call.task
        assert (await client.get(id_of(call))).status_code == 404 and client.server.engine.open_count == 0
        assert await client.ended("overrun") == 1
        assert await client.metric("headrace_resumable_stream_bytes") < 2**15

    run(body)


def test_a_client_that_reads_slowly_gets_all_of_it():
    async def body():
        client = Client(**SMALL)
        call = client.asks(**SCORED)
        await call.started.wait()
        call.takes.clear()
        await until(lambda: not client.server.process.playing)
        await turns()
        assert await client.metric("headrace_resumable_stream_bytes") < 2**16 + 4096
        call.takes.set()
        await call.task
        assert validate_body(body_of(call)).text == "a" * LONG

    run(body)


def test_streams_that_were_read_give_way_and_others_do_not():
    async def body():
        client = Client(resume_bytes=2**16, resume_total_bytes=2**16)
        read = client.asks(max_tokens=100)
        await read.task
        broken = await client.asks_and_leaves(max_tokens=150)
        client.goes_on()
        await until(lambda: client.server.engine.open_count == 0)
        assert (await client.get(id_of(read))).status_code == 404
        third = await client.server.post(
            COMPLETIONS, {"prompt": "a", "stream": True, "resumable": True, "max_tokens": 100}
        )
        assert validate_body(third.content).text == "a" * 100, "a reader that keeps up needs no room"
        again = await client.get(broken, after=1)
        assert again.content.endswith(b"data: [DONE]\n\n")

    run(body)


def test_without_room_a_resumable_request_is_refused_and_no_other():
    async def body():
        client = Client(resume_bytes=2**16, resume_total_bytes=2**16)
        await client.asks_and_leaves(**SCORED)
        client.goes_on()
        await until(lambda: client.server.engine.open_count == 0)
        plain = {"prompt": "a", "stream": True, "max_tokens": 4}
        refused = await client.server.post(COMPLETIONS, {**plain, "resumable": True})
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "too_many_streams"
        assert "65536" in refused.json()["error"]["message"] and refused.headers["retry-after"] == "60"
        assert (await client.server.post(COMPLETIONS, plain)).status_code == 200

    run(body)


# --- the server stops ---


def test_a_drain_waits_for_a_stream_until_it_is_read():
    async def body():
        client = Client()
        drain = client.server.context.drain
        id = await client.asks_and_leaves()
        drain.begin()
        assert drain.active == 1 and not await drain.idle(0)
        assert (await client.server.post(COMPLETIONS, {"prompt": "a"})).status_code == 503
        client.goes_on()
        assert (await client.get(id, after=0)).content.endswith(b"data: [DONE]\n\n")
        assert await drain.idle(0)

    run(body)


@pytest.mark.parametrize("end", ["stop", "expiry", "delete", "all was read"])
def test_a_drain_waits_no_longer_than_anybody_may_come_back(end):
    async def body():
        client = Client(resume_seconds=0.05 if end == "expiry" else 60)
        drain = client.server.context.drain
        id = await client.asks_and_leaves()
        drain.begin()
        if end == "stop":
            client.server.engine.abort_all("the server is shutting down")
            client.streams.stop()
            assert await client.ended("stopped") == 1
        elif end == "delete":
            await client.server.client.delete(f"/v1/streams/{id}")
        elif end == "all was read":
            client.goes_on()
            await until(lambda: client.server.engine.open_count == 0)
            await turns()
            assert (await client.get(id, after=21)).status_code == 204
        assert await drain.idle(20)
        assert client.server.engine.open_count == 0

    run(body)
