"""Two engines behind one server: which gets a job, and what is told of each."""

import asyncio
import contextlib
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest

from configs.settings import Settings
from scheduler.types.messages import Heartbeat
from server.app import create_app
from server.drain import Drain
from server.engines.client import EngineClient
from server.engines.engines import Engines
from server.engines.supervision.incarnations import Incarnations
from server.errors import Unavailable
from server.telemetry.metrics import Metrics
from tests.server.api.scripted import Server, ready_event
from tests.server.engines.harness import eventually, http, job, make_app, run, running
from tests.server.engines.scripted_engine import HOLD, READY

pytestmark = pytest.mark.processes

NAMES = ("first", "second")
JOB = job([5, 6])


@contextlib.asynccontextmanager
async def two_engines(tmp_path):
    """A server of two engines. The first becomes ready only while `gate` exists."""
    gate, metrics = tmp_path / "gate", Metrics()
    gate.touch()
    async with (
        running("--gate", str(gate), name="first", metrics=metrics) as first,
        running(name="second", metrics=metrics) as second,
    ):
        engines = Engines([first.client, second.client])
        async with http(make_app(Settings(), engines, metrics, Drain())) as client:
            yield SimpleNamespace(
                first=first, second=second, engines=engines, client=client, metrics=metrics, gate=gate
            )


def post(server, prompt, **body):
    return server.client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 3, **body})


async def hold_one_each(server):
    """A request that never ends in each engine; the tasks that wait for the answers, the first engine's first."""
    tasks = []
    for rig in (server.first, server.second):
        tasks.append(asyncio.create_task(post(server, [HOLD])))
        await eventually(lambda client=rig.client: client.status.stats.running == 1)
    return tasks


def test_requests_reach_both_and_one_dies_while_the_other_goes_on_serving(tmp_path):
    async def body():
        async with two_engines(tmp_path) as server:
            on_first, on_second = await hold_one_each(server)
            server.gate.unlink()
            os.kill(server.first.processes[0].pid, signal.SIGKILL)
            await eventually(lambda: server.second.client.status.stats.running == 2)
            assert not on_first.done()
            answer = await post(server, [5])  # while the first is down
            assert answer.json()["usage"]["completion_tokens"] == 3
            assert server.first.client.status.state == "starting" and not on_second.done()
            await told_apart(server)
            server.gate.touch()
            await eventually(lambda: server.first.client.status.state == "ready")
            assert len(server.first.processes) == 2 and len(server.second.processes) == 1
            assert (await post(server, [5])).status_code == 200  # the second holds one, so this is the first's
            assert server.metrics.registry.get_sample_value("headrace_steps_total", {"engine": "first"}) >= 3
            for request in (on_first, on_second):
                request.cancel()
            await asyncio.gather(on_first, on_second, return_exceptions=True)
            await eventually(lambda: server.second.client.status.stats.running == 0)

    run(body)


async def told_apart(server):
    """By name, in /health and /metrics, while the first is down."""
    assert (await server.client.get("/ready")).status_code == 200
    health = await server.client.get("/health")
    assert health.status_code == 200
    told = health.json()["engines"]
    assert [told[name]["status"] for name in NAMES] == ["unhealthy", "healthy"]
    assert "starting" in told["first"]["trouble"] and "SIGKILL" in told["first"]["trouble"]
    assert told["second"]["trouble"] is None
    lines = (await server.client.get("/metrics")).text.splitlines()
    for line in (
        'headrace_engine_up{engine="first"} 0.0',
        'headrace_engine_up{engine="second"} 1.0',
        'headrace_engine_restarts_total{engine="first"} 1.0',
        'headrace_engine_restarts_total{engine="second"} 0.0',
        'headrace_replayed_requests_total{engine="second"} 1.0',
        'headrace_sequences_running{engine="second"} 2.0',
        'headrace_kv_blocks{engine="first",state="free"} 0.0',
        'headrace_kv_blocks{engine="second",state="free"} 64.0',
    ):
        assert line in lines
    assert sum(line.startswith("# TYPE headrace_engine_up ") for line in lines) == 1
    assert 'headrace_sequences_finished_total{reason="error"} 0.0' in lines  # of the server, not of an engine


def test_a_server_none_of_whose_engines_is_ready_says_why_of_each(tmp_path):
    async def body():
        async with two_engines(tmp_path) as server:
            for rig in (server.first, server.second):
                await rig.supervisor.stop()
            health = await server.client.get("/health")
            assert health.status_code == 503
            message = health.json()["error"]["message"]
            assert "first: The server is shutting down." in message
            assert "second: The server is shutting down." in message
            assert (await server.client.get("/ready")).status_code == 503
            assert (await post(server, [5])).status_code == 503

    run(body)


def test_all_sequences_of_a_job_go_to_one_engine(tmp_path):
    async def body():
        async with two_engines(tmp_path) as server:
            held = asyncio.create_task(post(server, [HOLD], n=3))
            await eventually(lambda: server.first.client.status.stats.running == 3)
            assert server.second.client.open_count == 0
            answer = await post(server, [5], n=3)
            assert answer.json()["usage"]["completion_tokens"] == 9
            assert server.metrics.registry.get_sample_value("headrace_steps_total", {"engine": "second"}) >= 9
            held.cancel()
            await asyncio.gather(held, return_exceptions=True)

    run(body)


def test_prompts_of_a_job_are_spread_over_engines_and_sequences_of_a_prompt_are_not(tmp_path):
    async def body():
        async with two_engines(tmp_path) as server:
            clients = [rig.client for rig in (server.first, server.second)]
            held = [asyncio.create_task(post(server, [[HOLD, 1], [HOLD, 2]], n=3))]
            await eventually(lambda: [client.status.stats.running for client in clients] == [3, 3])
            for client in clients:
                ids = {tuple(stream.request.prompt_ids) for stream in client._streams.values()}
                assert len(ids) == 1, "the sequences of one prompt"
            held.append(asyncio.create_task(post(server, [[HOLD], [HOLD, 3], [HOLD, 4], [HOLD, 5]])))
            await eventually(lambda: [client.status.stats.running for client in clients] == [5, 5])
            clients[0].status.draining = True
            answer = await post(server, [[5], [6], [7]])
            assert [choice["index"] for choice in answer.json()["choices"]] == [0, 1, 2]
            for request in held:
                request.cancel()
            await asyncio.gather(*held, return_exceptions=True)
            await eventually(lambda: not any(client.open_count for client in clients))

    run(body)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_names_what_computes_in_the_engine_that_gave_it(stream):
    async def body():
        first, second = Server("ab"), Server("cd")
        second.engine.name = "second"
        ready = ready_event()
        ready.computes = "another script"
        second.incarnations.handle(ready)
        names = [server.engine.fingerprint for server in (first, second)]
        assert names[0] != names[1]
        context = replace(first.context, engines=Engines([first.engine, second.engine]))
        async with http(create_app(context)) as client:
            request = {"prompt": "a", "stream": stream}
            answers = await asyncio.gather(*(client.post("/v1/completions", json=request) for _ in names))
        assert [len(server.process.requests) for server in (first, second)] == [1, 1]
        assert [[name in answer.text for name in names] for answer in answers] == [[True, False], [False, True]]

    run(body)


def clients(*states):
    made = [EngineClient(f"engine-{number}", Settings(), Metrics()) for number in range(len(states))]
    for client, state in zip(made, states, strict=True):
        client.status.state = state
    return made


def test_names_are_each_engines_own():
    with pytest.raises(ValueError, match="two engines have the same name: a, a"):
        Engines([EngineClient("a", Settings(), Metrics()), EngineClient("a", Settings(), Metrics())])
    with pytest.raises(ValueError, match="needs an engine"):
        Engines([])


@pytest.mark.parametrize(
    ("states", "message"),
    [(("dead", "starting"), "starting"), (("dead", "stopped"), "shutting down"), (("dead", "dead"), "does not start")],
)
def test_of_engines_that_are_not_ready_the_one_that_may_be_first_answers(states, message):
    with pytest.raises(Unavailable, match=message):
        Engines(clients(*states)).choose(JOB)


def test_what_engines_say_of_the_model_is_taken_from_one_that_is_ready():
    dead, ready = clients("dead", "starting")
    engines = Engines([dead, ready])
    assert engines.info is None and not engines.ready
    Incarnations(ready, Metrics()).handle(READY)
    assert engines.info == READY and engines.ready
    assert engines.by_name["engine-1"] is ready


def test_what_is_valid_for_the_shortest_context_that_is_served_is_valid_for_all():
    long, short = clients("ready", "ready")
    engines = Engines([long, short])
    assert READY.context > 9
    long.status.info, short.status.info = READY, replace(READY, context=9)
    assert engines.info == short.status.info
    short.status.liveness.passed(1e6)
    assert engines.info == READY, "it gets no job now"


def test_an_engine_that_hangs_gets_no_job_while_another_works():
    silent, other = clients("ready", "ready")
    engines = Engines([silent, other])
    silent.status.liveness.passed(1e6)
    assert engines.ready and engines.choose(JOB) is other
    other.status.liveness.passed(1e6)
    assert not engines.ready
    with pytest.raises(Unavailable, match="The engine hangs: it has said nothing for 1000000 s"):
        engines.choose(JOB)
    silent.status.liveness.heard(Heartbeat(doing="idle"))
    assert engines.ready and engines.choose(JOB) is silent
