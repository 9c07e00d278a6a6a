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

from loadtest.client.sse_grammar import validate
from tests.e2e.server_process import ServerProcess

pytestmark = pytest.mark.processes

PATIENCE = 120.0  # seconds a busy machine may take for one thing; no test waits that long on an idle one
LONG = {"prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def breakable():
    server = ServerProcess("--kv-blocks", "400", "--drain-seconds", "600")
    yield server
    server.stop()


@pytest.fixture
def start():
    """Start servers; none outlives the test, however that ends."""
    servers = []

    def make(*arguments, **options):
        servers.append(ServerProcess(*arguments, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


def http():
    return httpx.AsyncClient(timeout=PATIENCE, limits=httpx.Limits(max_connections=None))


async def stream_events(client, url, body, *, leave_after=None, begun=None):
    """The `data:` events of a streamed completion; leaves after so many, if told to. `begun` is set by the first.

    A 503 in place of a stream counts as its only event.
    """
    events = []
    async with client.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}) as response:
        if response.status_code == 503:
            return [f"data: {(await response.aread()).decode()}\n\n"]
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                events.append(line + "\n\n")
                if begun:
                    begun.set()
                if leave_after is not None and len(events) >= leave_after:
                    break
    return events


async def until_status(client, url, status):
    """Poll until `url` answers so."""
    async with asyncio.timeout(PATIENCE):
        while (await client.get(url)).status_code != status:
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def mortal():
    """A server whose engine is killed, with 5 s for a hang, and what it answers if nothing happens."""
    server = ServerProcess("--kv-blocks", "400", "--hang-seconds", "5")
    try:
        yield server, [said(events, about=True) for events in asyncio.run(streamed(server))]
    finally:
        server.stop()


REPLAYED = [
    {**LONG, "max_tokens": 100},
    {**LONG, "max_tokens": 100, "prompt": "It was", "stop": [" the time", ". And"], "prompt_logprobs": 1},
    {**LONG, "max_tokens": 100, "temperature": 1, "seed": 7, "n": 2, "logprobs": 1},
    {**LONG, "max_tokens": 100, "presence_penalty": 1, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
]


async def streamed(server, midway=None):
    """The events of all of `REPLAYED` at once. `midway` is called when each has begun."""
    begun = [asyncio.Event() for _ in REPLAYED]
    async with http() as client, asyncio.timeout(PATIENCE):
        streams = [
            asyncio.create_task(stream_events(client, server.url, {**body, **USAGE}, begun=event))
            for body, event in zip(REPLAYED, begun, strict=True)
        ]
        for event in begun:
            await event.wait()
        if midway is not None:
            midway()
        return await asyncio.gather(*streams)


USAGE = {"stream_options": {"include_usage": True}, "return_token_ids": True}


def said(events, about=False):
    """Everything that a stream says of its answer, by choice, however it was cut into events; log probabilities `about` exactly."""
    told = {}
    for event in (json.loads(event.removeprefix("data:")) for event in events if "[DONE]" not in event):
        assert "error" not in event, event
        for choice in event["choices"]:
            one = told.setdefault(choice["index"], {"text": "", "ids": [], "logprobs": [], "prompt": [], "end": []})
            one["text"] += choice["text"]
            one["ids"] += choice.get("token_ids") or []
            one["prompt"] += choice.get("prompt_logprobs") or []
            # Their last bits depend on how many rows a step has: torch splits a sum over the vocabulary among its threads.
            logprobs = (choice["logprobs"] or {}).get("token_logprobs", [])
            one["logprobs"] += [pytest.approx(value, abs=1e-3) for value in logprobs] if about else logprobs
            one["end"] += [choice["finish_reason"]] if choice["finish_reason"] else []
        if event.get("usage"):
            told["tokens"] = [event["usage"][name] for name in ("prompt_tokens", "completion_tokens")]
    return told


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_no_client_notices_that_the_engine_died_or_hung(mortal, number):
    server, undisturbed = mortal
    before = server.metrics()
    pid = server.engine.pid
    events = asyncio.run(streamed(server, lambda: server.engine.send_signal(number)))
    for stream, body in zip(events, REPLAYED, strict=True):
        validate(stream, choices=body.get("n", 1), include_usage=True)
    assert [said(stream) for stream in events] == undisturbed
    assert server.engine.pid != pid
    metrics = server.metrics()
    for name, more in (("headrace_engine_restarts_total", 1), ("headrace_replayed_requests_total", 5)):
        assert metrics[name] == before[name] + more
    finished = [name for name in metrics if name.startswith("headrace_sequences_finished_total")]
    assert sum(metrics[name] - before[name] for name in finished) == 5


def test_the_engine_ends_with_its_parent(mortal):
    """The last test of this server."""
    server, _ = mortal
    engine = server.engine
    server.process.kill()
    server.process.wait()
    engine.wait(PATIENCE)
    assert not engine.is_running()


def test_a_request_that_two_engines_died_of_is_ended_and_the_server_recovers(breakable):
    """Those that come while the engine is away are refused; then the server answers again."""

    async def scenario():
        begun = [asyncio.Event() for _ in range(6)]
        async with http() as client, asyncio.timeout(PATIENCE):
            streams = [asyncio.create_task(stream_events(client, breakable.url, LONG, begun=event)) for event in begun]
            whole = asyncio.create_task(client.post(f"{breakable.url}/v1/completions", json=LONG))
            for event in begun:
                await event.wait()
            for _ in range(2):
                await asyncio.to_thread(breakable.wait_until, lambda: breakable.metrics()[RUNNING] == 7)
                unhealthy = asyncio.create_task(until_status(client, f"{breakable.url}/health", 503))
                late = asyncio.create_task(stream_events(client, breakable.url, {**LONG, "max_tokens": 8}))
                breakable.engine.kill()
                await unhealthy
                await late
            return await asyncio.gather(*streams), await late, await whole

    restarts = breakable.metrics()["headrace_engine_restarts_total"]
    streams, late, whole = asyncio.run(scenario())
    for events in streams:
        assert len(events) > 1
        assert validate(events).error["code"] == "poison_request"
    late_error = validate(late).error
    assert late_error is None or late_error["code"] == "unavailable"  # before or after the death
    assert (whole.status_code, whole.json()["error"]["code"]) == (500, "poison_request")
    breakable.wait_until(lambda: httpx.get(f"{breakable.url}/ready").status_code == 200, PATIENCE)
    answer = httpx.post(f"{breakable.url}/v1/completions", json={**LONG, "max_tokens": 4}, timeout=PATIENCE)
    assert answer.status_code == 200
    assert httpx.get(f"{breakable.url}/health", timeout=PATIENCE).status_code == 200
    assert breakable.metrics()["headrace_engine_restarts_total"] == restarts + 2


RUNNING = "headrace_sequences_running"


def test_a_stopped_engine_is_not_ready_and_is_again_when_it_goes_on(breakable):
    engine = breakable.engine
    ready, health = (
        lambda path=path: httpx.get(f"{breakable.url}/{path}", timeout=PATIENCE) for path in ("ready", "health")
    )
    assert ready().status_code == health().status_code == 200
    counted = []  # the last step of an answer is counted a moment after the answer has come

    def settled():
        counted.append(health().json()["steps"])
        return counted[-8:] == [counted[-1]] * 8

    breakable.wait_until(settled, PATIENCE)
    steps = counted[-1]
    engine.suspend()
    try:
        breakable.wait_until(lambda: ready().status_code == 503, PATIENCE)
        assert "said nothing" in health().json()["error"]["message"]
        assert httpx.post(f"{breakable.url}/v1/completions", json=LONG, timeout=PATIENCE).status_code == 503
    finally:
        engine.resume()
    breakable.wait_until(lambda: ready().status_code == 200, PATIENCE)
    assert health().json()["steps"] == steps, "asking how it is takes no step"
    answer = httpx.post(f"{breakable.url}/v1/completions", json={**LONG, "max_tokens": 4}, timeout=PATIENCE)
    assert answer.json()["usage"]["completion_tokens"] == 4


def in_engine(metrics):
    return metrics["headrace_sequences_running"] + metrics["headrace_sequences_waiting"]


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
        leaves, streamed = rng.random() < 0.2, rng.random() < 0.7
        leave_after, leave_seconds = rng.randrange(1, 9) if leaves else None, rng.uniform(0, 0.5)
        if streamed:
            events = await stream_events(client, breakable.url, body, leave_after=leave_after)
            if not leaves:
                validate(events, choices=body["n"])
            return
        request = asyncio.create_task(client.post(f"{breakable.url}/v1/completions", json=body))
        if leaves:  # wherever it is by then
            await asyncio.wait({request}, timeout=leave_seconds)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
        else:
            assert (await request).status_code == 200

    async def scenario():
        async with http() as client:
            for _ in range(2):
                await asyncio.gather(*(one(client, i) for i in range(20)))

    def all_is_given_back():
        metrics = breakable.metrics()
        checked = metrics["headrace_integrity_checks_total"] > before["headrace_integrity_checks_total"]
        idle = in_engine(metrics) == metrics['headrace_kv_blocks{state="used"}'] == 0
        return metrics if idle and checked else None

    before = breakable.metrics()
    asyncio.run(scenario())
    metrics = breakable.wait_until(all_is_given_back, PATIENCE)
    for name in ("headrace_integrity_failures_total", "headrace_engine_restarts_total"):
        assert metrics[name] == before[name]


def test_sigterm_drains_then_ends_the_rest_with_a_reason(start):
    server = start("--kv-blocks", "400", "--drain-seconds", "4")

    async def scenario():
        long_begun, short_begun = asyncio.Event(), asyncio.Event()
        async with http() as client, asyncio.timeout(PATIENCE):
            body = {**LONG, "max_tokens": 6000}  # not done within the drain, on any machine
            long = asyncio.create_task(stream_events(client, server.url, body, begun=long_begun))
            await long_begun.wait()
            body = {**LONG, "max_tokens": 5}
            short = asyncio.create_task(stream_events(client, server.url, body, begun=short_begun))
            await short_begun.wait()
            server.process.send_signal(signal.SIGTERM)
            await until_status(client, f"{server.url}/ready", 503)
            refused = await client.post(f"{server.url}/v1/completions", json=LONG)
            return await long, await short, refused

    long, short, refused = asyncio.run(scenario())
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    validate(short)
    assert "shutting down" in validate(long).error["message"]
    assert server.process.wait(PATIENCE) == 0


def test_port_in_use_is_said_at_once(breakable, start):
    port = breakable.url.rsplit(":", 1)[1]
    second = start("--port", port, wait=False)
    assert second.process.wait(PATIENCE) == 1
    second.wait_for(rf"{port}.*in use|in use.*{port}", 5)


def test_a_model_that_cannot_be_served_is_said_plainly(tmp_path, start):
    config = {"model_type": "brandnew", "architectures": ["BrandNewForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    server = start(str(tmp_path), wait=False)
    assert server.process.wait(PATIENCE) == 1
    server.stop()  # all it printed has been read
    text = "".join(server.output)
    assert "neither a family here nor transformers reads it" in text
    assert "brandnew" in text
    assert "Traceback" not in text


def test_a_second_signal_ends_at_once(breakable):
    """The last test of this server."""
    server, engine = breakable, breakable.engine

    async def scenario():
        begun = asyncio.Event()
        async with http() as client, asyncio.timeout(PATIENCE):
            body = {**LONG, "max_tokens": 6000}
            long = asyncio.create_task(stream_events(client, server.url, body, begun=begun))
            await begun.wait()
            server.process.send_signal(signal.SIGTERM)
            await until_status(client, f"{server.url}/ready", 503)
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.TransportError):
                await long

    asyncio.run(scenario())
    assert server.process.wait(PATIENCE) == 128 + signal.SIGTERM
    deadline = time.monotonic() + PATIENCE
    while engine.is_running() and engine.status() != "zombie" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not engine.is_running() or engine.status() == "zombie"
