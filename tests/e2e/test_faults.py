"""What clients see when things break, with real processes and real signals."""

import asyncio
import json
import random
import signal
import time

import httpx
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from loadtest.sse_grammar import validate
from tests.e2e.server_process import ServerProcess

LONG = {"prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def breakable():
    server = ServerProcess("--kv-blocks", "400", "--drain-seconds", "1")
    yield server
    server.stop()


async def stream_events(client, url, body, *, leave_after=None, on_event=None):
    """The `data:` events of a streamed completion; leaves after so many, if told to."""
    events = []
    async with client.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                events.append(line + "\n\n")
                if on_event:
                    on_event()
                if leave_after is not None and len(events) >= leave_after:
                    break
    return events


def test_kill_9_under_load(breakable):
    """Each open stream ends with exactly one error event; then the server recovers and answers."""

    async def scenario():
        running = asyncio.Event()
        async with httpx.AsyncClient(timeout=60) as client:
            streams = [
                asyncio.create_task(stream_events(client, breakable.url, LONG, on_event=running.set)) for _ in range(6)
            ]
            whole = asyncio.create_task(client.post(f"{breakable.url}/v1/completions", json=LONG))
            await running.wait()
            await asyncio.sleep(0.3)
            breakable.engine.kill()
            return await asyncio.gather(*streams), await whole

    streams, whole = asyncio.run(scenario())
    for events in streams:
        last = json.loads(events[-1].removeprefix("data:"))
        assert last["error"]["code"] == "engine_died"
        assert not any("error" in json.loads(event.removeprefix("data:")) for event in events[:-1])
    assert whole.status_code == 503
    assert whole.json()["error"]["code"] == "engine_died"
    assert httpx.get(f"{breakable.url}/health").status_code == 503
    breakable.wait_until(lambda: httpx.get(f"{breakable.url}/ready").status_code == 200)
    answer = httpx.post(f"{breakable.url}/v1/completions", json={**LONG, "max_tokens": 4}, timeout=60)
    assert answer.status_code == 200
    assert httpx.get(f"{breakable.url}/health", timeout=30).status_code == 200
    assert breakable.metrics()["headrace_engine_restarts_total"] == 1


def test_clients_that_leave_at_random_leak_nothing(breakable):
    """Many requests of mixed shape, a fifth of them leaving at random, streamed and not."""
    rng = random.Random(5)

    async def one(client, i):
        body = {
            "prompt": [rng.randrange(100, 40000) for _ in range(rng.choice([3, 40, 100]))],
            "max_tokens": rng.choice([1, 8, 24]),
            "ignore_eos": True,
            "temperature": rng.choice([0, 1]),
            "n": rng.choice([1, 1, 2]),
            "seed": i,
        }
        leaves = rng.random() < 0.2
        if rng.random() < 0.3:
            request = client.post(f"{breakable.url}/v1/completions", json=body, timeout=0.3 if leaves else 120)
            try:
                assert (await request).status_code == 200
            except httpx.ReadTimeout:
                assert leaves
            return
        events = await stream_events(client, breakable.url, body, leave_after=rng.randrange(1, 9) if leaves else None)
        if not leaves:
            validate(events, choices=body["n"])

    async def scenario():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            for _ in range(2):
                await asyncio.gather(*(one(client, i) for i in range(20)))

    asyncio.run(scenario())
    metrics = breakable.wait_idle()
    assert metrics['headrace_kv_blocks{state="used"}'] == 0
    breakable.wait_until(lambda: breakable.metrics()["headrace_integrity_checks_total"] > 0)
    assert metrics["headrace_integrity_failures_total"] == 0


def test_sigterm_drains_then_ends_the_rest_with_a_reason():
    server = ServerProcess("--kv-blocks", "400", "--drain-seconds", "1.5")

    async def scenario():
        running, short_done = asyncio.Event(), asyncio.Event()
        async with httpx.AsyncClient(timeout=60) as client:
            long = asyncio.create_task(stream_events(client, server.url, LONG, on_event=running.set))
            await running.wait()
            short = asyncio.create_task(stream_events(client, server.url, {**LONG, "max_tokens": 5}))
            await asyncio.sleep(0.1)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            refused = await client.post(f"{server.url}/v1/completions", json=LONG)
            ready = await client.get(f"{server.url}/ready")
            short_done.set()
            return await long, await short, refused, ready

    long, short, refused, ready = asyncio.run(scenario())
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert ready.status_code == 503
    validate(short)
    assert "shutting down" in json.loads(long[-1].removeprefix("data:"))["error"]["message"]
    assert server.process.wait(30) == 0


def test_a_second_signal_ends_at_once():
    server = ServerProcess("--kv-blocks", "400", "--drain-seconds", "60")
    engine = server.engine

    async def scenario():
        running = asyncio.Event()
        async with httpx.AsyncClient(timeout=60) as client:
            long = asyncio.create_task(stream_events(client, server.url, LONG, on_event=running.set))
            await running.wait()
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.TransportError):
                await long

    asyncio.run(scenario())
    assert server.process.wait(10) == 128 + signal.SIGTERM
    deadline = time.monotonic() + 10
    while engine.is_running() and engine.status() != "zombie" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not engine.is_running() or engine.status() == "zombie"


def test_the_engine_ends_with_its_parent():
    server = ServerProcess("--kv-blocks", "64")
    engine = server.engine
    server.process.kill()
    server.process.wait()
    engine.wait(20)
    assert not engine.is_running()


def test_port_in_use_is_said_at_once(breakable):
    port = breakable.url.rsplit(":", 1)[1]
    second = ServerProcess("--port", port, wait=False)
    assert second.process.wait(20) == 1
    second.wait_for(rf"{port}.*in use|in use.*{port}", 5)


def test_a_model_that_cannot_be_served_is_said_plainly(tmp_path):
    config = {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    server = ServerProcess(str(tmp_path), wait=False)
    assert server.process.wait(60) == 1
    text = "".join(server.output)
    assert "gpt_neox" in text
    assert "llama" in text
    assert "Traceback" not in text
