"""Engines that an operator drains and restarts: what `/v1/engines` says, one after the other, and no request is lost."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest

from configs.settings import Settings
from server.drain import Drain
from server.engines.engines import Engines
from server.telemetry.metrics import Metrics
from tests.server.api.scripted import Server
from tests.server.api.scripted import run as run_scripted
from tests.server.engines.harness import eventually, http, make_app, run, running
from tests.server.engines.scripted_engine import HOLD

pytestmark = pytest.mark.processes


@contextlib.asynccontextmanager
async def pool(*options):
    """A server of two engines, the first of them started with these options."""
    metrics = Metrics()
    async with (
        running(*options, name="a", metrics=metrics) as a,
        running(name="b", metrics=metrics) as b,
    ):
        engines, rigs = Engines([a.client, b.client]), {"a": a, "b": b}
        supervisors = {name: rig.supervisor for name, rig in rigs.items()}
        async with http(make_app(Settings(), engines, metrics, Drain(), supervisors)) as client:
            yield SimpleNamespace(client=client, engines=engines, rigs=rigs, metrics=metrics)


async def cards(server):
    answer = await server.client.get("/v1/engines")
    assert answer.status_code == 200
    return {card["id"]: card for card in answer.json()["data"]}


async def health(server):
    return (await server.client.get("/health")).json()["engines"]


async def act(server, name, what):
    return await server.client.post(f"/v1/engines/{name}/{what}")


def post(server, first_id=5):
    return server.client.post("/v1/completions", json={"prompt": [first_id], "max_tokens": 3})


async def settled(server):
    while any(card["restarting"] for card in (await cards(server)).values()):
        await asyncio.sleep(0.01)


def lives(server):
    return {name: len(rig.processes) for name, rig in server.rigs.items()}


def test_a_drained_engine_ends_what_it_has_and_gets_nothing_new():
    async def body():
        async with pool() as server:
            held = asyncio.create_task(post(server, HOLD))
            a = server.rigs["a"].client
            await eventually(lambda: a.status.stats.running == 1)
            assert (await act(server, "a", "drain")).json()["state"] == "draining"
            steps = a.status.stats.steps
            assert [(await post(server)).status_code for _ in range(3)] == [200] * 3
            assert a.status.stats.steps == steps and (await server.client.get("/ready")).status_code == 200
            held.cancel()
            await asyncio.gather(held, return_exceptions=True)
            card = (await cards(server))["a"]
            assert (card["state"], card["trouble"], card["role"]) == ("drained", None, "mixed")
            await act(server, "b", "drain")
            refused = await post(server)
            assert refused.status_code == 503 and "drained" in refused.json()["error"]["message"]
            assert (await server.client.get("/ready")).status_code == 503
            assert (await server.client.get("/health")).status_code == 200
            assert (await act(server, "a", "undrain")).json()["state"] == "ready"
            assert (await post(server)).status_code == 200
            assert lives(server) == {"a": 1, "b": 1}

    run(body)


def test_a_rolling_restart_loses_no_request(caplog):
    async def body():
        async with pool() as server:
            statuses, stop = [], asyncio.Event()

            async def stream():
                while not stop.is_set():
                    statuses.append((await post(server)).status_code)

            streams = [asyncio.create_task(stream()) for _ in range(3)]
            for name in "ab":
                assert (await act(server, name, "restart")).json()["restarting"]
            least = 2
            while any(card["restarting"] for card in (await cards(server)).values()):
                least = min(least, sum(client.status.usable for client in server.engines))
                await asyncio.sleep(0.005)
            stop.set()
            await asyncio.gather(*streams)
            assert set(statuses) == {200} and least == 1
            assert lives(server) == {"a": 2, "b": 2}
            assert all(card["state"] == "ready" for card in (await cards(server)).values())
            for name in "ab":
                assert server.metrics.registry.get_sample_value("headrace_engine_restarts_total", {"engine": name}) == 1
            old = [rig.processes[0].exit_code for rig in server.rigs.values()]
            assert old == [0, 0]

    run(body)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_restart_waits_for_what_is_open():
    async def body():
        async with pool() as server:
            held = asyncio.create_task(post(server, HOLD))
            a = server.rigs["a"].client
            await eventually(lambda: a.status.stats.running == 1)
            await act(server, "a", "restart")
            await eventually(lambda: a.status.draining)
            conflict = await act(server, "a", "undrain")
            assert conflict.status_code == 409 and "being restarted" in conflict.json()["error"]["message"]
            assert (await act(server, "a", "restart")).json()["state"] == "draining", "a second time means nothing"
            assert lives(server) == {"a": 1, "b": 1}
            held.cancel()
            await asyncio.gather(held, return_exceptions=True)
            await settled(server)
            assert lives(server) == {"a": 2, "b": 1} and a.status.usable

    run(body)


def test_where_one_does_not_come_back_the_others_are_left_alone(tmp_path, caplog):
    async def body():
        failing = ("--start", "fail:99", "--counter", str(tmp_path / "starts"))
        async with pool(*failing) as server:
            for name in "ab":
                await act(server, name, "restart")
            await settled(server)
            states = {name: card["state"] for name, card in (await cards(server)).items()}
            assert states == {"a": "dead", "b": "ready"} and lives(server)["b"] == 1
            for trouble in ((await cards(server))["a"]["trouble"], (await health(server))["a"]["trouble"]):
                assert "given up, as 4 starts failed within 600 s: no such weights" in trouble
            ready = await server.client.get("/ready")
            assert ready.json() == {"status": "ready", "engines": states}
            assert (await post(server)).status_code == 200
            assert not (await act(server, "b", "restart")).json()["trouble"]
            await settled(server)
            assert lives(server)["b"] == 1, "nobody else would take requests"

    run(body)
    assert "b: is not restarted: no other engine would take requests meanwhile" in caplog.text
    assert "a: has not come back: the other engines are not restarted" in caplog.text


def test_an_engine_that_was_given_up_is_started_anew(tmp_path, caplog):
    async def body():
        failing = ("--start", "fail:6", "--counter", str(tmp_path / "starts"))  # the second time it needs three starts
        async with pool(*failing) as server:
            a, b = (server.rigs[name].client for name in "ab")
            for started in (5, 8):
                card = await act(server, "a", "restart")
                assert card.status_code == 200 and card.json()["restarting"]
                await settled(server)
                assert lives(server) == {"a": started, "b": 1}
            assert a.status.usable and a.status.failure is None and (await cards(server))["a"]["trouble"] is None
            b.status.draining = True
            assert (await post(server)).status_code == 200

    run(body)
    assert caplog.text.count("given up") == 1


def test_a_servers_only_engine_is_restarted_too():
    async def body():
        async with running() as rig:
            app = make_app(rig.settings, Engines([rig.client]), rig.metrics, rig.drain, {"engine": rig.supervisor})
            async with http(app) as client:
                await client.post("/v1/engines/engine/restart")
                await eventually(lambda: len(rig.processes) == 2 and rig.client.status.usable)
                answer = await client.post("/v1/completions", json={"prompt": [5], "max_tokens": 3})
                assert answer.status_code == 200

    run(body)


def test_engines_are_guarded_by_the_key_and_known_by_name():
    async def body():
        server = Server(api_key=["secret"], admin_keys=["key1"])
        assert (await server.client.get("/v1/engines")).status_code == 401
        assert (await server.client.post("/v1/engines/engine/drain")).status_code == 401
        assert server.engine.status.usable
        server.client.headers["Authorization"] = "Bearer secret"
        (card,) = (await server.client.get("/v1/engines")).json()["data"]
        assert (card["id"], card["state"], card["version"], card["device"]) == ("engine", "ready", "1", "cpu")
        assert card["fingerprint"] == server.engine.fingerprint
        unknown = await server.client.post("/v1/engines/engine-9/drain")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "engine_not_found")
        assert "engine-9" in unknown.json()["error"]["message"] and "`engine`" in unknown.json()["error"]["message"]

    run_scripted(body)


@pytest.mark.parametrize("what", ["drain", "undrain", "restart"])
def test_where_some_keys_are_the_operators_no_other_touches_engines(what):
    async def body():
        server = Server(api_key=["a", "b"], key_names=["ops", "shop"], admin_keys=["ops"])
        server.client.headers["Authorization"] = "Bearer b"
        refused = await server.client.post(f"/v1/engines/engine/{what}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden_key")
        assert server.engine.status.usable and (await server.client.get("/v1/engines")).status_code == 200
        server.client.headers["Authorization"] = "Bearer a"
        assert (await server.client.post("/v1/engines/engine/undrain")).status_code == 200
        assert (await server.client.post("/v1/engines/engine/drain")).json()["state"] == "drained"

    run_scripted(body)


def test_an_engine_that_was_never_ready_has_a_card_too():
    async def body():
        (card,) = (await Server(ready=False).client.get("/v1/engines")).json()["data"]
        assert card["state"] == "starting" and "starting" in card["trouble"]
        assert card["fingerprint"] is None

    run_scripted(body)
