"""However requests end, and at whatever stage, what they held is given back: streams and queue of the server, blocks, pins and
sequences of the engine."""

import asyncio
import random

import pytest

from scheduler.types.messages import FinishReason, Output
from tests.engine.cpu.test_worker import build, prompt
from tests.server.api.scripted import ScriptedProcess, Server, hand_made, ready_event, run

USER = {"role": "user", "content": "hello"}
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELD = (
    "headrace_sequences_waiting",
    "headrace_requests_in_flight",
    "headrace_http_requests_open",
    "headrace_resumable_streams ",
    "headrace_resumable_stream_bytes ",
)


def body(draw: random.Random) -> tuple[str, dict]:
    """A request, of which some are refused: by its fields, by its length, by the queue."""
    shared = {
        "max_tokens": draw.choice([0, 1, 5, 50]),
        "n": draw.choice([1, 1, 2, 4]),
        "stream": draw.random() < 0.5,
        "temperature": draw.choice([0, 1, 1, 9]),
        "cache_pin_seconds": draw.choice([0, 0, 60]),
        "stop": draw.choice([[], ["c"], ["never"]]),
    }
    shared["resumable"] = shared["stream"] and draw.random() < 0.5
    if draw.random() < 0.5:
        return CHAT, {"messages": [USER] * draw.choice([1, 2, 40]), **shared}
    prompt = draw.choice(["a", ["a", "b", "c"], [1, 2], [[1], [2, 3]], "x" * 200, "x" * 400])
    return COMPLETIONS, {"prompt": prompt, "echo": draw.random() < 0.2, **shared}


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def stream_of(call) -> str | None:
    """Id of the resumable stream that it has begun, if it has."""
    id = dict(call.sent[0]["headers"]).get(b"x-stream-id") if call.sent else None
    return None if id is None else id.decode()


async def one_end(server: Server, draw: random.Random, calls: list) -> None:
    """Something happens to a request, to all, or to the engine."""
    ends = ["leave", "leave", "error", "abort", "abort all", "die", "pause", "nothing", "nothing", "back", "back"]
    end = draw.choice(ends)
    if end == "leave" and calls:
        draw.choice(calls).leave.set()
    elif end == "back" and (ids := [found for call in calls if (found := stream_of(call)) is not None]):
        method = draw.choice(["GET", "GET", "DELETE"])
        calls.append(hand_made(server.app, f"/v1/streams/{draw.choice(ids)}", method=method))
    elif end in ("error", "abort"):
        reason = FinishReason.ERROR if end == "error" else FinishReason.ABORT
        server.process.fail = {draw.randrange(4): Output(request_id="", finish_reason=reason, error="drawn")}
    elif end == "abort all":
        server.engine.abort_all("the server stops")
    elif end == "die":
        if server.process.task is not None:
            server.process.task.cancel()
        server.incarnations.detach("killed")
        await steps(draw.randrange(20))
        server.replace(ScriptedProcess(server.process.reply))
    elif end == "pause":
        server.process.gate.clear()
        await steps(draw.randrange(30))
        server.process.gate.set()
    else:
        server.process.fail = {}


@pytest.mark.parametrize("seed", range(8))
def test_a_server_after_any_ends_holds_nothing(seed):
    async def walk():
        draw = random.Random(seed)
        server = Server(lambda request: [97, 98, 99] * 30, max_waiting=12)
        calls = []
        for _ in range(60):
            calls.append(server.call(*body(draw)))
            if draw.random() < 0.2:  # some leave before anything was done for them
                calls[-1].leave.set()
            await steps(draw.randrange(12))
            await one_end(server, draw, calls)
        server.process.gate.set()
        server.process.fail = {}
        await asyncio.wait_for(asyncio.gather(*(call.task for call in calls)), 60)
        await steps(50)
        while server.engine.open_count:  # what is resumable goes on without its client
            await steps(50)
        server.context.streams.stop()
        await steps(2)
        assert server.engine.open_count == 0 and server.engine.waiting == 0
        assert not server.process.playing
        assert await server.context.drain.idle(0)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not [task for task in left if task is not server.process.task], left
        answer = await server.post(COMPLETIONS, {"prompt": "a", "max_tokens": 3})
        assert answer.status_code == 200
        metrics = (await server.client.get("/metrics")).text
        statuses = {call.sent[0]["status"] for call in calls if call.sent}
        return metrics, statuses

    metrics, statuses = run(walk)
    assert {200, 400} <= statuses <= {200, 400, 404, 429, 499, 500, 503}
    for line in metrics.splitlines():
        if line.startswith(HELD):
            assert float(line.rpartition(" ")[2]) == 0, line


def test_every_refusal_before_the_engine_costs_nothing():
    async def ask():
        server = Server()
        for fields in (
            {"temperature": 9},
            {"n": 10**6},
            {"max_tokens": 10**6},
            {"nobody": 1},
            {"model": "other"},
            {"best_of": 3, "stream": True},
        ):
            answer = await server.post(COMPLETIONS, {"prompt": "a", **fields})
            assert answer.status_code in (400, 404)
            assert not server.process.requests and server.engine.open_count == 0
        answer = await server.post(COMPLETIONS, {"prompt": ["a", "x" * 1000]})
        assert answer.status_code == 400 and not server.process.requests

    run(ask)


def test_a_full_queue_takes_all_sequences_of_a_request_or_none():
    async def ask():
        server = Server(max_waiting=3)
        server.process.gate.clear()
        first = server.call(COMPLETIONS, {"prompt": "a", "n": 2})
        await steps(30)
        refused = await server.post(COMPLETIONS, {"prompt": "a", "n": 2})
        assert refused.status_code == 429 and server.engine.open_count == 2
        first.leave.set()
        await first.task
        assert server.engine.open_count == 0
        server.process.gate.set()
        assert (await server.post(COMPLETIONS, {"prompt": "a", "n": 2})).status_code == 200

    run(ask)


def test_an_engine_that_is_not_ready_costs_nothing():
    async def ask():
        server = Server(ready=False)
        for path, fields in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": [USER]})):
            assert (await server.post(path, fields)).status_code == 503
        assert server.engine.open_count == 0
        server.replace(server.process)
        server.incarnations.handle(ready_event())
        assert (await server.post(COMPLETIONS, {"prompt": "a"})).status_code == 200

    run(ask)


# --- the engine: real scheduler, real worker ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_an_engine_after_any_ends_holds_nothing(tiny_model, seed):
    draw = random.Random(seed)
    engine, _ = build(tiny_model("llama")[1], blocks=24)
    penalties = {"presence_penalty": 0.5, "logit_bias": {5: 1.0}, "bad_words": ((7, 8),), "min_tokens": 2}
    number = 0
    for _ in range(70):
        if draw.random() < 0.5:
            number += 1
            sampling = {"max_tokens": draw.choice([0, 1, 9, 40]), **(penalties if draw.random() < 0.5 else {})}
            asked = prompt(draw.choice([1, 20, 20, 60]), draw.randrange(3))
            try:
                engine.add(
                    f"r{number}", asked, priority=draw.randrange(3), pin_seconds=draw.choice([0.0, 5.0]), **sampling
                )
            except ValueError:
                assert len(asked) + sampling["max_tokens"] > 24
        open_ones = [name for name in engine.requests if name not in engine.ends]
        if open_ones and draw.random() < 0.3:
            engine.abort(draw.choice(open_ones))
        if draw.random() < 0.08:
            engine.fail_step()
        engine.tick()
    for name in [name for name in engine.requests if name not in engine.ends]:
        if draw.random() < 0.5:
            engine.abort(name)
    engine.drain()
    stats = engine.scheduler.snapshot()
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
    assert stats.blocks_free + stats.blocks_cached == stats.blocks_total  # cached ones are there for whoever comes
    assert engine.ends.keys() >= engine.requests.keys()
    assert engine.worker._sequences == {}
    kept = [
        edit
        for edit in engine.worker._sampler._edits
        if any(vars(edit).get(name) for name in ("_counts", "_words", "_arrays"))
    ]
    assert kept == []
    assert len({end.finish_reason for end in engine.ends.values()}) >= 3  # ran out, were aborted, failed


def test_what_was_pinned_by_an_aborted_request_gives_way_in_time(tiny_model):
    engine, _ = build(tiny_model("llama")[1], blocks=24)
    engine.add("pinned", prompt(60), max_tokens=9, pin_seconds=50.0)
    engine.tick()
    engine.abort("pinned")
    engine.drain()
    pool = engine.scheduler.pool
    assert 0 < pool.eviction.pinned <= pool.eviction.pinned_limit
    assert engine.scheduler.snapshot().blocks_used == 0
    engine.now += 1000.0
    for i in range(6):  # others need the room
        engine.add(f"later{i}", prompt(60, i + 1), max_tokens=9)
        engine.drain()
    assert pool.eviction.pinned == 0
