"""Responses in the background: asked for again, followed from anywhere, cancelled, failed, bounded, ended by the server's stop."""

import asyncio
import json

import pytest

from configs.settings import Settings
from scheduler.types.messages import FinishReason, Output
from server.errors import EventsDropped
from server.schema.dialects.responses_answers import ResponseAnswer
from server.stream import sse
from server.stream.event_log import EventLog
from tests.server.api.dialects.asked import events_of, prompt_of
from tests.server.api.scripted import Server, run

PATH = "/v1/responses"
ASKED = {"input": "Hi", "background": True}
STREAMED = {**ASKED, "stream": True}
KEYS = {"api_key": ["ann-key", "bob-key"], "key_names": ["ann", "bob"]}


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


async def shown(server, name):
    return ResponseAnswer.model_validate_json((await server.client.get(f"{PATH}/{name}")).content)


async def ended(server, name):
    await until(lambda: server.context.background.find(name, None) is None)
    return await shown(server, name)


async def follow(server, name, after=None):
    params = {"stream": "true"} | ({} if after is None else {"starting_after": after})
    response = await server.client.get(f"{PATH}/{name}", params=params)
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n") and response.text.count("[DONE]") == 1
    return events_of(response.text)


def test_it_is_answered_at_once_and_asked_for_until_it_has_ended():
    async def ask():
        server = Server("Hello")
        server.process.gate.clear()
        first = (await server.post(PATH, ASKED)).json()
        statuses = [first["status"], (await shown(server, first["id"])).status]
        asked = await server.client.get(f"{PATH}/{first['id']}/input_items")
        early = await server.post(PATH, {"input": "More.", "previous_response_id": first["id"]})
        server.process.step()
        statuses.append((await shown(server, first["id"])).status)
        server.process.gate.set()
        last = await ended(server, first["id"])
        on = await server.post(PATH, {"input": "More.", "previous_response_id": first["id"]})
        assert server.engine.open_count == 0 and server.context.drain.active == 0 and on.status_code == 200
        return statuses, asked.json(), early, last, prompt_of(server)

    statuses, asked, early, last, prompt = run(ask)
    assert statuses == ["queued", "queued", "in_progress"] and last.status == "completed"
    assert last.output[0].content[0].text == "Hello" and last.background and last.usage.output_tokens == 6
    assert asked["data"][0]["content"][0]["text"] == "Hi" and "assistant\nHello" in prompt
    assert early.status_code == 400 and early.json()["error"]["param"] == "previous_response_id"


def test_a_stream_is_followed_from_any_event_and_outlives_its_client():
    async def ask():
        server = Server("Hello, wörld!")
        call = server.call(PATH, STREAMED)
        await until(lambda: server.process.steps == 4)
        call.leave.set()
        await call.task
        head = events_of(b"".join(message.get("body", b"") for message in call.sent).decode())
        name = head[0]["response"]["id"]
        rest = await follow(server, name, head[-1]["sequence_number"])
        again = [await follow(server, name, after) for after in (None, 0, 5)]
        last = len(head + rest) - 1
        nothing = await server.client.get(f"{PATH}/{name}", params={"stream": "true", "starting_after": last})
        return head, rest, again, nothing, await shown(server, name), server

    head, rest, again, nothing, answer, server = run(ask)
    events = head + rest
    assert 4 <= len(head) < len(events) and not server.process.aborted
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert again == [events, events[1:], events[6:]] and (nothing.status_code, nothing.text) == (200, "")
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "queued", "in_progress", "output_item.added"] and kinds[-1] == "completed"
    assert [event["response"]["status"] for event in events[:3]] == ["queued", "queued", "in_progress"]
    assert ResponseAnswer.model_validate(events[-1]["response"]) == answer and answer.status == "completed"


def test_several_follow_while_it_is_computed():
    async def ask():
        server = Server("Hello, wörld!")
        server.process.gate.clear()
        first = asyncio.create_task(server.post(PATH, STREAMED))
        await until(lambda: server.process.requests)
        name = server.process.requests[0].request_id.removesuffix("-0")
        others = [asyncio.create_task(follow(server, name, after)) for after in (None, 1)]
        await asyncio.sleep(0)
        server.process.gate.set()
        return events_of((await first).text), [await other for other in others]

    events, others = run(ask)
    assert others == [events, events[2:]]


def test_it_is_cancelled_once_and_its_sequence_is_aborted():
    async def ask():
        server = Server("Hello, wörld!")
        first = asyncio.create_task(server.post(PATH, STREAMED))
        await until(lambda: server.process.steps == 3)
        server.process.gate.clear()
        name = server.process.requests[0].request_id.removesuffix("-0")
        answers = [await server.client.post(f"{PATH}/{name}/cancel") for _ in range(2)]
        events = events_of((await first).text)
        assert server.engine.open_count == 0 and server.context.drain.active == 0
        assert server.process.aborted == [f"{name}-0"] and not server.process.playing
        return [each.json() for each in answers], events, await shown(server, name)

    (one, two), events, kept = run(ask)
    assert one == two and ResponseAnswer.model_validate(one) == kept and kept.status == "cancelled"
    assert [event["type"] for event in events].count("response.incomplete") == 1
    assert events[-1]["response"] == one and events[-1]["sequence_number"] == len(events) - 1


def test_what_has_ended_or_never_ran_in_the_background_is_not_cancelled():
    async def ask():
        server = Server("ok")
        plain = (await server.post(PATH, {"input": "a"})).json()["id"]
        done = (await server.post(PATH, ASKED)).json()["id"]
        await ended(server, done)
        return [await server.client.post(f"{PATH}/{name}/cancel") for name in (plain, done, "resp_x")]

    plain, done, unknown = run(ask)
    assert plain.status_code == 400 and "`background`" in plain.json()["error"]["message"]
    assert (done.status_code, done.json()["status"], unknown.status_code) == (200, "completed", 404)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["error", "stops"])
def test_a_failure_is_its_last_event_and_is_kept(how, stream):
    async def ask():
        server = Server("Hello")
        if how == "error":
            server.process.fail[3] = Output(request_id="", finish_reason=FinishReason.ERROR, error="scripted")
        task = asyncio.create_task(server.post(PATH, {**ASKED, "stream": stream}))
        await until(lambda: server.process.steps == 2)
        name = server.process.requests[0].request_id.removesuffix("-0")
        assert server.context.drain.active >= 1, "a stop waits for it"
        if how == "stops":
            server.engine.abort_all("the server is shutting down")
        kept = await ended(server, name)
        text = (await task).text
        metrics = (await server.client.get("/metrics")).text
        assert server.context.drain.active == 0 and server.engine.open_count == 0
        return events_of(text) if stream else [], kept, metrics

    events, kept, metrics = run(ask)
    assert kept.status == "failed" and kept.error.code == "server_error"
    assert ("scripted" if how == "error" else "shutting down") in kept.error.message
    code = "generation_failed" if how == "error" else "unavailable"
    assert f'headrace_request_errors_total{{code="{code}"}} 1.0' in metrics
    if stream:
        assert [event["type"] for event in events].count("response.failed") == 1
        assert ResponseAnswer.model_validate(events[-1]["response"]) == kept


def test_so_many_run_and_no_more():
    async def ask():
        server = Server("ok", max_background=1)
        server.process.gate.clear()
        first = (await server.post(PATH, ASKED)).json()["id"]
        refused = [await server.post(PATH, body) for body in (ASKED, STREAMED)]
        server.process.gate.set()
        await ended(server, first)
        wrong = await server.post(PATH, {**ASKED, "input": "a" * 300})
        again = await server.post(PATH, ASKED)
        await ended(server, again.json()["id"])
        return refused, wrong.status_code, again.status_code, server.context.drain.active

    refused, *after = run(ask)
    assert [each.json()["error"]["code"] for each in refused] == ["too_many_responses"] * 2
    assert all(each.status_code == 429 and "is 1." in each.json()["error"]["message"] for each in refused)
    assert after == [400, 200, 0]


def test_it_is_deleted_while_it_runs():
    async def ask():
        server = Server(lambda request: [97] * 1000)
        name = (await server.post(PATH, ASKED)).json()["id"]
        await until(lambda: server.process.steps == 3)
        gone = await server.client.delete(f"{PATH}/{name}")
        assert server.process.aborted == [f"{name}-0"] and server.engine.open_count == 0
        return gone.status_code, (await server.client.get(f"{PATH}/{name}")).status_code

    assert run(ask) == (200, 404)


def test_nobody_sees_another_tenants():
    async def ask():
        server = Server("ok", **KEYS)
        server.process.gate.clear()
        ann, bob = ({"authorization": f"Bearer {name}-key"} for name in ("ann", "bob"))
        path = f"{PATH}/{(await server.post(PATH, ASKED, headers=ann)).json()['id']}"
        seen = [
            [
                (await server.client.get(path, headers=of)).status_code,
                (await server.client.get(f"{path}/input_items", headers=of)).status_code,
                (await server.client.post(f"{path}/cancel", headers=of)).status_code,
                (await server.client.delete(path, headers=of)).status_code,
            ]
            for of in (bob, ann)
        ]
        return seen

    assert run(ask) == [[404] * 4, [200] * 4]


def test_wrong_requests_are_refused_by_name():
    async def ask():
        server = Server("ok")
        silent = (await server.post(PATH, ASKED)).json()["id"]
        told = events_of((await server.post(PATH, STREAMED)).text)[0]["response"]["id"]
        await ended(server, silent)
        asked = [(silent, "stream=true"), (told, "stream=maybe"), (told, "starting_after=1")]
        asked += [(told, f"stream=true&starting_after={number}") for number in ("99", "-1", "x", "9" * 40)]
        answers = [await server.client.get(f"{PATH}/{name}?{query}") for name, query in asked]
        answers.append(await server.post(PATH, {**ASKED, "store": False}))
        answers += [await Server(**{name: 0}).post(PATH, ASKED) for name in ("response_seconds", "max_background")]
        return [(each.status_code, each.json()["error"]["param"]) for each in answers]

    stream, after, background = (400, "stream"), (400, "starting_after"), (400, "background")
    assert run(ask) == [stream, stream, *[after] * 5, *[background] * 3]


def test_a_log_keeps_the_newest_events_and_says_so(monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.0)

    async def read():
        log = EventLog(3 * (64 + 2))
        log.add([b"%d\n" % number for number in range(9)])
        with pytest.raises(EventsDropped, match="oldest is 6"):
            log.check(4)
        log.check(5)
        found = [await anext(events := log.follow(5)), await anext(events)]
        log.add([b"9\n"])
        log.end()
        found += [data async for data in events]
        late = [data async for data in log.follow(2)]
        return found, late, log.last, log.size

    found, late, last, size = run(read)
    assert found == [b"6\n7\n8\n", sse.KEEP_ALIVE, b"9\n"] and (last, size) == (9, 3 * 66)
    assert json.loads(late[0].removeprefix(b"data: "))["error"]["code"] == "events_dropped"


def test_its_settings_need_a_store():
    with pytest.raises(ValueError, match="response_seconds"):
        Settings(response_seconds=0, max_background=2)
