"""Tokens on the short way, from the engine to the socket without a task or a middleware, are what they are on the long one."""

import asyncio
import json
import re

import pytest

from server.errors import GenerationFailed
from server.http.cycle import RequestCycle
from server.stream.generation import TextChoice
from server.stream.sse import EventStream
from tests.server.api.scripted import CHATML, Server

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TEXT = "Hällo, wörld! 🎉 No end, no <b>end."
BODIES = {
    "plain": (COMPLETIONS, {}),
    "usage": (COMPLETIONS, {"stream_options": {"include_usage": True}}),
    "usage at every step": (COMPLETIONS, {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
    "stop string": (COMPLETIONS, {"stop": ["no <", "end!"]}),
    "stop token": (COMPLETIONS, {"stop_token_ids": [ord("<")], "include_stop_str_in_output": True}),
    "length": (COMPLETIONS, {"max_tokens": 11}),
    "in a character": (COMPLETIONS, {"max_tokens": 9}),
    "probabilities": (COMPLETIONS, {"logprobs": 3}),
    "prompt's probabilities": (COMPLETIONS, {"prompt_logprobs": 1}),
    "ids": (COMPLETIONS, {"return_token_ids": True}),
    "echo": (COMPLETIONS, {"echo": True}),
    "two choices": (COMPLETIONS, {"n": 2}),
    "two prompts": (COMPLETIONS, {"prompt": ["a", "b"]}),
    "chat": (CHAT, {}),
    "chat with probabilities": (CHAT, {"logprobs": True, "top_logprobs": 2}),
    "response": ("/v1/responses", {}),
    "message": ("/v1/messages", {"max_tokens": 100}),
}


class Wire:
    """A connection whose client takes what it is sent, or for a while does not."""

    default_headers = ()

    def __init__(self):
        self.write_paused, self.sent, self.direct = False, b"", 0
        self.writable = asyncio.Event()

    def write(self, data):
        self.sent += data

    def framed(self, frame):
        return lambda middle: self.write(frame.filled(middle))

    async def drained(self):
        await self.writable.wait()

    def resume_reading(self):
        pass

    def answered(self):
        pass

    def cut(self):
        self.sent += b"cut"


def asked(path, body):
    prompt = (
        {"prompt": "a", "max_tokens": 60} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "a"}]}
    )
    prompt = {"input": "a"} if path == "/v1/responses" else prompt
    return {"model": "small", "stream": True, **prompt, **body}


def cycle_of(server, path, body, wire):
    content = json.dumps(asked(path, body)).encode()
    scope = {**hand_made_scope(path, content), "http_version": "1.1"}
    cycle = RequestCycle(scope, wire, keep_alive=True, expects_continue=False)
    cycle.feed(content)
    cycle.end_body()
    return cycle, asyncio.create_task(cycle.run(server.app))


def hand_made_scope(path, content):
    headers = [
        (b"host", b"localhost"),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(content)),
    ]
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }


def body_of(sent: bytes) -> str:
    """Of an answer in chunks."""
    _, rest = sent.split(b"\r\n\r\n", 1)
    body = b""
    while rest:
        size, rest = rest.split(b"\r\n", 1)
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body.decode()


def comparable(body: str) -> str:
    """Without what differs from request to request."""
    body = re.sub(r'"timings":\{[^}]*\}', '"timings":{}', body)
    body = re.sub(r'"(created|created_at|completed_at)":[\d.]+', r'"\1":0', body)
    return re.sub(r"\b(cmpl|chatcmpl|resp|msg)[-_][0-9a-f]{8,}", r"\1-", body)


@pytest.fixture
def direct(monkeypatch):
    """How many times something was written on the short way."""
    counted = {"texts": 0, "deltas": 0}

    def counts(name, original):
        def write(self, gained):
            counted[name] += 1
            original(self, gained)

        return write

    monkeypatch.setattr(EventStream, "write_quoted", counts("texts", EventStream.write_quoted))
    monkeypatch.setattr(EventStream, "write", counts("deltas", EventStream.write))
    return counted


def run(body):
    return asyncio.run(asyncio.wait_for(body(), 20))


@pytest.mark.parametrize("name", BODIES)
def test_both_ways_say_the_same(name, direct):
    path, body = BODIES[name]

    async def both():
        server, wire = Server(TEXT, template=CHATML), Wire()
        long = (await server.post(path, asked(path, body))).text
        assert not any(direct.values()), "nothing but our own connections lends a short way"
        _, task = cycle_of(server, path, body, wire)
        await task
        assert server.engine.open_count == 0
        return long, wire

    long, wire = run(both)
    assert comparable(body_of(wire.sent)) == comparable(long)
    assert direct["texts"] or direct["deltas"] or "two" in name
    if name in ("plain", "usage", "chat"):
        assert direct["texts"] > 20 and not direct["deltas"]


@pytest.mark.parametrize("name", ["plain", "stop string", "probabilities", "chat"])
def test_a_client_that_pauses_misses_nothing(name, direct):
    """Whatever arrives meanwhile waits for it, in order."""
    path, body = BODIES[name]

    async def paused():
        server = Server(TEXT, template=CHATML)
        long = (await server.post(path, asked(path, body))).text
        for at in (1, 2, 5):
            wire = Wire()
            server.process.gate.clear()
            _, task = cycle_of(server, path, body, wire)
            while not server.process.playing:
                await asyncio.sleep(0)
            for step in range(200):
                wire.write_paused = step % 7 >= at
                (wire.writable.clear if wire.write_paused else wire.writable.set)()
                size = len(wire.sent)
                server.process.gate.set()
                await asyncio.sleep(0)
                server.process.gate.clear()
                for _ in range(12):
                    await asyncio.sleep(0)
                assert not wire.write_paused or len(wire.sent) == size
            wire.write_paused = False
            wire.writable.set()
            server.process.gate.set()
            await task
            assert comparable(body_of(wire.sent)) == comparable(long)

    run(paused)
    assert direct["texts"] or direct["deltas"]


@pytest.mark.parametrize("what", ["absorb", "write_quoted"])
def test_a_failure_on_the_short_way_ends_that_stream_alone(what, monkeypatch):
    def broken(self, _):
        raise GenerationFailed("It broke.")

    async def both():
        server = Server(TEXT, template=CHATML)
        server.process.gate.clear()
        good, bad = Wire(), Wire()
        stop = BODIES["stop string"][1]
        calls = [cycle_of(server, COMPLETIONS, stop, good), cycle_of(server, COMPLETIONS, {}, bad)]
        while len(server.process.playing) < 2:
            await asyncio.sleep(0)
        server.process.gate.set()
        while b'"o"' not in bad.sent:
            await asyncio.sleep(0)
        server.process.gate.clear()
        if what == "absorb":
            monkeypatch.setattr(TextChoice, "absorb", broken)
        else:
            monkeypatch.setattr(EventStream, "write_quoted", broken)
        server.process.gate.set()
        await asyncio.gather(*(task for _, task in calls))
        assert server.engine.open_count == 0
        return good, bad

    good, bad = run(both)
    broke = good if what == "absorb" else bad
    assert body_of(broke.sent).count("generation_failed") == 1 and "[DONE]" not in body_of(broke.sent)
    if what == "write_quoted":
        assert body_of(good.sent).endswith("data: [DONE]\n\n") and '"stop_reason":"no <"' in body_of(good.sent)


def test_a_client_that_leaves_ends_it():
    async def leave():
        server, wire = Server(TEXT, template=CHATML), Wire()
        server.process.gate.clear()
        cycle, task = cycle_of(server, COMPLETIONS, {}, wire)
        while not server.process.playing:
            await asyncio.sleep(0)
        server.process.gate.set()
        while b'"o"' not in wire.sent:
            await asyncio.sleep(0)
        cycle.disconnect()
        size = len(wire.sent)
        await task
        assert len(wire.sent) == size
        assert server.engine.open_count == 0 and len(server.process.aborted) == 1

    run(leave)
