"""An engine that ends while requests are open: what clients read is what they would have read."""

import asyncio
import json
import random
import time
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from configs.settings import Settings
from loadtest.client.sse_grammar import validate_body
from scheduler.types.messages import (
    AddRequest,
    EngineStats,
    FinishReason,
    Output,
    RequestTimes,
    StepOutputs,
)
from scheduler.types.sampling_params import SamplingParams
from server.app import create_app
from server.engines.client import EngineClient
from server.engines.engines import Engines
from server.engines.supervision.incarnations import Incarnations
from server.errors import EngineDied, PoisonRequest, Unavailable
from server.telemetry.lifetime import Lifetime
from server.telemetry.metrics import Metrics
from tests.drawn import drawn
from tests.server.api.scripted import END, ScriptedProcess, Server, hand_made, ready_event, run

PROMPT = "Once upon a time"
LETTERS = [*b"abc  ", *"ü€🙂".encode()]


def drawn_reply(request):
    """What a model would say: each token depends on seed (or, if greedy, on nothing) and position alone."""
    seed = None if request.sampling.greedy else request.sampling.seed
    tokens = [random.Random(f"{seed}/{position}").choice([*LETTERS, END]) for position in range(40)]
    return [token for position, token in enumerate(tokens) if token != END or position >= 8]


@st.composite
def bodies(draw):
    body = {
        "temperature": draw(st.sampled_from([0, 1])),
        "seed": draw(st.integers(0, 50)),
        "max_tokens": draw(st.integers(1, 20)),
        "n": draw(st.integers(1, 3)),
        "stop": draw(st.sampled_from([None, ["c"], [" a", "b b"], "ü"])),
        "prompt_logprobs": draw(st.sampled_from([None, 1])),
        "return_token_ids": draw(st.booleans()),
        "stream": draw(st.booleans()),
    }
    if body["stream"] and draw(st.booleans()):
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": draw(st.booleans())}
    if draw(st.booleans()):
        return "/v1/completions", {"prompt": PROMPT, "logprobs": draw(st.sampled_from([None, 2])), **body}
    scores = draw(st.sampled_from([{}, {"logprobs": True, "top_logprobs": 1}]))
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}], **scores, **body}


class Mortal:
    """A server whose engine can die."""

    def __init__(self, *, per_step=1, **settings):
        self.per_step = per_step
        self.server = Server(drawn_reply, **settings)
        self.pace(self.server.process)

    def pace(self, process):
        process.per_step, process.prompt_per_step = self.per_step, 7

    def dies_after(self, steps, then):
        """`then` is called once the engine is gone."""
        process = self.server.process
        step, last = process.step, process.steps + steps

        def stepping():
            if process.steps < last:
                step()
                return
            process.playing.clear()
            self.server.incarnations.detach("killed")
            then()

        process.step = stepping

    def comes_back(self):
        self.server.replace(ScriptedProcess(drawn_reply))
        self.pace(self.server.process)


def parts(response, body):
    """What the client reads, by choice and in order, without what differs from call to call."""
    assert response.status_code == 200, response.text
    if not body["stream"]:
        answer = response.json()
        for name in ("id", "created", "timings"):
            answer.pop(name)
        return answer
    usage = body.get("stream_options", {})
    continuous = usage.get("continuous_usage_stats", False)
    validate_body(response.content, choices=body["n"], include_usage=bool(usage), continuous_usage=continuous)
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: {")]
    by_choice = {}
    for event in map(json.loads, lines):
        for name in ("id", "created", "timings"):
            event.pop(name, None)
        index = event["choices"][0]["index"] if event["choices"] else None
        by_choice.setdefault(index, []).append(event)
    return by_choice


@given(asked=bodies(), per_step=st.integers(1, 3), steps=st.integers(0, 20), pause=st.integers(0, 12))
@hypothesis_settings(max_examples=drawn(25))
def test_whenever_the_engine_dies_the_client_reads_what_it_would_have_read(asked, per_step, steps, pause):
    path, body = asked

    async def ask():
        mortal, tasks = Mortal(per_step=per_step), []
        undisturbed = await mortal.server.post(path, body)

        async def recover():
            for _ in range(pause):
                await asyncio.sleep(0)
            mortal.comes_back()

        mortal.dies_after(steps, lambda: tasks.append(asyncio.create_task(recover())))
        disturbed = await mortal.server.post(path, body)
        await asyncio.gather(*tasks)
        metrics = (await mortal.server.client.get("/metrics")).text
        return mortal.server, undisturbed, disturbed, metrics

    server, undisturbed, disturbed, metrics = run(ask)
    assert parts(disturbed, body) == parts(undisturbed, body)
    ended = [line for line in metrics.splitlines() if line.startswith("headrace_sequences_finished_total{")]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in ended) == 2 * body["n"], "one end each"
    assert server.engine.open_count == 0 and not server.process.playing


def test_a_sequence_without_a_seed_keeps_the_one_that_was_drawn():
    async def body():
        mortal = Mortal()
        first = mortal.server.process
        mortal.dies_after(3, mortal.comes_back)
        answer = await mortal.server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 8, "n": 2})
        again = mortal.server.process.requests
        assert answer.status_code == 200
        assert [each.sampling.seed for each in again] == [each.sampling.seed for each in first.requests]
        assert [len(each.generated_ids) for each in again] == [3, 3]

    run(body)


# --- the parts, in the client's hands ---


class Wire(SimpleNamespace):
    """An engine that only takes down what it is sent."""

    def __init__(self):
        super().__init__(pid=1, started=0.0, sent=[])

    def listen(self, name, on_event, on_broken):
        """Events are handed over by the test."""

    def once_connected(self, action):
        """Its endpoints are kept."""

    def remove_endpoints(self):
        """There are none."""

    def send(self, command):
        self.sent.append(command)

    @property
    def added(self):
        return [(each.request_id, each.generated_ids) for each in self.sent if isinstance(each, AddRequest)]


class Pool:
    """Engines of these names, all ready."""

    def __init__(self, *names, **settings):
        self.metrics = Metrics()
        self.clients = [EngineClient(name, Settings(**settings), self.metrics) for name in names]
        self.engines = Engines(self.clients)
        self.lives = {client.name: Incarnations(client, self.metrics) for client in self.clients}
        self.wires = {}
        for client in self.clients:
            self.up(client)

    def up(self, client, **ready):
        wire = self.wires[client.name] = Wire()
        self.lives[client.name].attach(wire, wire, pytest.fail)
        event = ready_event()
        self.lives[client.name].handle(replace(event, **ready))

    def kill(self, client):
        self.lives[client.name].detach("killed")

    def sample(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels)


def submit(client, *names, max_tokens=9):
    """Sequences `job-index`; those of one job have one prompt."""
    prompts = defaultdict(lambda: [1, 2])
    requests = [
        AddRequest(
            request_id=name,
            prompt_ids=prompts[name.rpartition("-")[0]],
            sampling=SamplingParams(max_tokens=max_tokens),
        )
        for name in names
    ]
    return [client.submit(request, Lifetime(received=time.monotonic(), prompt_tokens=2)) for request in requests]


def started(client, *streams):
    client.sequences_started([stream.request_id for stream in streams])


def tokens(client, stream, *ids):
    output = Output(request_id=stream.request_id, token_ids=list(ids))
    client.step_ended(StepOutputs(outputs=[output], stats=EngineStats(running=1)), time.monotonic())


def test_another_engine_goes_on_at_once_and_requests_stay_together():
    async def body():
        pool = Pool("a", "b", "c")
        first, second, _ = pool.clients
        streams = submit(first, "x-0", "x-1", "y-0")
        started(first, *streams)
        tokens(first, streams[0], 5, 6)
        pool.kill(first)
        assert pool.wires["b"].added == [("x-0", [5, 6]), ("x-1", [])]
        assert pool.wires["c"].added == [("y-0", [])]
        assert [client.open_count for client in pool.clients] == [0, 2, 1]
        assert pool.sample("headrace_replayed_requests_total", engine="b") == 2
        tokens(second, streams[0], 7)
        assert [(await anext(streams[0])).token_ids for _ in range(2)] == [[5, 6], [7]]
        for stream in streams:
            stream.close()
        assert [client.open_count for client in pool.clients] == [0, 0, 0]
        assert pool.sample("headrace_sequences_finished_total", reason="abort") == 3

    run(body)


def test_several_prompts_of_one_call_are_spread_over_those_that_are_left():
    async def body():
        pool = Pool("a", "b", "c")
        prompts = [[1, 2], [3, 4], [5, 6], [7, 8]]
        for index in range(8):  # two choices of each
            request = AddRequest(
                request_id=f"x-{index}", prompt_ids=prompts[index // 2], sampling=SamplingParams(max_tokens=9)
            )
            pool.clients[0].submit(request, Lifetime(received=time.monotonic(), prompt_tokens=2))
        pool.kill(pool.clients[0])
        assert [name for name, _ in pool.wires["b"].added] == ["x-0", "x-1", "x-4", "x-5"]
        assert [name for name, _ in pool.wires["c"].added] == ["x-2", "x-3", "x-6", "x-7"]
        pool.engines.abort_all("the test ends")

    run(body)


def test_a_request_that_two_engines_died_of_is_ended_and_those_that_waited_are_not():
    async def body():
        pool = Pool("a")
        client = pool.clients[0]
        poison, once, innocent = submit(client, "poison-0", "once-0", "innocent-0")
        for in_step in ((poison,), (poison, once)):
            started(client, *in_step)
            pool.kill(client)
            pool.up(client)
        with pytest.raises(PoisonRequest, match="2 engines died"):
            await anext(poison)
        assert poison.lifetime.reason is FinishReason.ERROR
        assert pool.wires["a"].added == [("once-0", []), ("innocent-0", [])]
        for _ in range(3):
            (other,) = submit(client, "other-0")
            started(client, other)
            pool.kill(client)
            other.close()
            pool.up(client)
        assert pool.wires["a"].added == [("once-0", []), ("innocent-0", [])]
        for stream in (once, innocent):
            stream.close()

    run(body)


def test_who_only_waited_is_blamed_if_nobody_else_can_be():
    async def body():
        pool = Pool("a")
        client = pool.clients[0]
        (stream,) = submit(client, "x-0")
        for _ in range(2):
            pool.kill(client)
            pool.up(client)
        with pytest.raises(PoisonRequest):
            await anext(stream)

    run(body)


def test_an_engine_that_computes_otherwise_does_not_go_on():
    async def body():
        pool = Pool("a", "b")
        first, second = pool.clients
        pool.up(second, computes="another model")
        (stream,) = submit(first, "x-0")
        pool.kill(first)
        assert pool.wires["b"].added == []
        pool.up(first)
        assert pool.wires["a"].added == [("x-0", [])]
        started(first, stream)
        stream.deaths = 0
        pool.kill(first)
        pool.up(first, computes="a third one")
        with pytest.raises(EngineDied):
            await anext(stream)

    run(body)


def test_waits_end_with_the_last_hope():
    async def body():
        pool = Pool("a", "b")
        first, second = pool.clients
        pool.kill(second)
        (stream,) = submit(first, "x-0")
        pool.kill(first)
        pool.lives["a"].give_up()
        reader = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        assert not reader.done()
        pool.lives["b"].give_up()
        with pytest.raises(EngineDied, match="while it worked on this request") as told:
            await reader
        assert int(told.value.headers["Retry-After"]) >= 1
        assert pool.sample("headrace_sequences_finished_total", reason="error") == 1

    run(body)


def test_waits_end_in_time():
    async def body():
        pool = Pool("a", replay_seconds=0.02)
        (stream,) = submit(pool.clients[0], "x-0")
        pool.kill(pool.clients[0])
        with pytest.raises(EngineDied, match=r"within 0.02 s \(replay_seconds\)"):
            await anext(stream)
        pool.up(pool.clients[0])
        assert pool.wires["a"].added == []

    run(body)


def test_who_leaves_while_waiting_is_forgotten_at_once():
    async def body():
        pool = Pool("a")
        left, stays = submit(pool.clients[0], "x-0", "y-0")
        pool.kill(pool.clients[0])
        left.close()
        assert pool.sample("headrace_sequences_finished_total", reason="abort") == 1
        pool.up(pool.clients[0])
        assert pool.wires["a"].added == [("y-0", [])]
        stays.close()

    run(body)


@pytest.mark.parametrize("end", ["drain", "stop"])
def test_a_server_that_stops_ends_those_that_wait_with_its_reason(end):
    async def body():
        pool = Pool("a")
        (stream,) = submit(pool.clients[0], "x-0")
        pool.kill(pool.clients[0])
        if end == "drain":
            pool.engines.abort_all("the server is shutting down")
            output = await anext(stream)
            assert (output.finish_reason, output.error) == (FinishReason.ABORT, "the server is shutting down")
            stream.close()
        else:
            pool.lives["a"].stopped()
            with pytest.raises(Unavailable, match="shutting down"):
                await anext(stream)
        reasons = set(FinishReason) - {FinishReason.HANDED_OVER}  # which no client ever reads
        assert sum(pool.sample("headrace_sequences_finished_total", reason=reason) for reason in reasons) == 1

    run(body)


def test_an_engine_that_goes_on_after_a_hang_takes_those_that_wait():
    async def body():
        pool = Pool("a", "b")
        first, second = pool.clients
        second.status.passed(1e6)
        (stream,) = submit(first, "x-0")
        pool.kill(first)
        assert pool.wires["b"].added == []
        second.status.liveness.restarted()
        second.status.passed(0.0)
        assert pool.wires["b"].added == [("x-0", [])]
        stream.close()

    run(body)


def test_a_stream_over_http_goes_on_in_the_second_engine():
    async def body():
        first, second = Server(drawn_reply), Server(drawn_reply)
        second.engine.name = "second"
        app = create_app(replace(first.context, engines=Engines([first.engine, second.engine])))
        ask = {"prompt": PROMPT, "temperature": 0, "max_tokens": 9, "stream": True}
        whole = await second.post("/v1/completions", ask)
        first.process.gate.clear()
        call = hand_made(app, "/v1/completions", json.dumps(ask).encode())
        while not first.process.requests:
            await asyncio.sleep(0)
        first.process.step()
        await call.started.wait()
        first.process.task.cancel()
        first.incarnations.detach("killed")
        await asyncio.wait_for(call.task, 20)
        text = validate_body(b"".join(message.get("body", b"") for message in call.sent)).text
        assert text == validate_body(whole.content).text
        assert second.process.requests[-1].generated_ids == list(drawn_reply(second.process.requests[-1]))[:1]

    run(body)


def test_a_sequence_of_several_engines_has_one_lifetime():
    lifetime = Lifetime(received=0.0)
    lifetime.replayed()  # before anything was said of it
    lifetime.absorb(RequestTimes(queued=1.0, scheduled=2.0, cached_tokens=3, preemptions=1))
    lifetime.token_arrived(3.0)
    lifetime.replayed()
    for preemptions in (0, 2):
        lifetime.absorb(RequestTimes(queued=11.0, scheduled=12.0, cached_tokens=30, preemptions=preemptions))
    assert (lifetime.queued, lifetime.scheduled, lifetime.cached_tokens) == (1.0, 2.0, 3)
    assert (lifetime.preemptions, lifetime.replays) == (3, 2)
