"""The middlewares, the error answers and the operator's routes, through the whole application."""

import asyncio
import json
import logging
import os
import re
import signal

import pytest
from fastapi import FastAPI

from configs.settings import Settings
from server.api.endpoint import GetEndpoint
from server.api.endpoints import ENDPOINTS
from server.drain import Drain
from server.engines.client import EngineClient
from server.engines.engines import Engines
from server.telemetry.metrics import Metrics, server_version
from tests.server.engines.harness import eventually, http, make_app, read, run, running
from tests.server.engines.scripted_engine import DIE, HOLD, STUCK, TOKEN

pytestmark = pytest.mark.processes

OPEN_PATHS = {endpoint.path for endpoint in ENDPOINTS if not endpoint.needs_key}
ENDLESS = {each.path for each in ENDPOINTS if isinstance(each, GetEndpoint) and "application/x-ndjson" in each.content}
OPERATIONS = {each.path for each in ENDPOINTS if each.while_draining and "{" not in each.path} - ENDLESS
KEYS = ["first-key", "second-key"]


def idle_app(**settings) -> tuple[FastAPI, Metrics, Drain]:
    """An application whose engine is still starting."""
    typed, metrics, drain = Settings(**settings), Metrics(), Drain()
    return make_app(typed, Engines([EngineClient("engine", typed, metrics)]), metrics, drain), metrics, drain


def every_route(routes):
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from every_route(inner.routes)
        else:
            path = re.sub(r"\{[^}]*\}", "x", route.path)
            yield from ((path, method) for method in route.methods)


def check_error(response, status, code):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["message"]
    assert response.headers["content-type"] == "application/json"
    return error


# --- keys ---


def test_every_route_is_guarded_but_live_and_ready():
    async def body():
        app, metrics, _ = idle_app(api_key=KEYS)
        assert {"/", "/live", "/map", "/ready"} == OPEN_PATHS
        found = set(every_route(app.routes))
        assert {("/v1/completions", "POST"), ("/metrics", "GET"), ("/openapi.json", "GET"), ("/", "GET")} <= found
        assert len(found) >= 13
        async with http(app) as client:
            for path, method in [
                *found,
                ("/nowhere", "GET"),
                ("/v1/nowhere", "POST"),
                ("/live/", "GET"),
                ("http://localhost//ready", "GET"),
            ]:
                response = await client.request(method, path)
                if path in OPEN_PATHS:
                    assert response.status_code != 401
                elif method == "HEAD":
                    assert response.status_code == 401
                else:
                    check_error(response, 401, "invalid_api_key")
                    assert response.headers["www-authenticate"] == "Bearer"
        refused = len([path for path, _ in found if path not in OPEN_PATHS]) + 4
        assert (
            metrics.registry.get_sample_value("headrace_request_errors_total", {"code": "invalid_api_key"}) == refused
        )

    run(body)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer first-key", 200), ("bearer second-key", 200), ("Bearer  first-key ", 200), ("Bearer first-ke", 401),
        ("Bearer first-key2", 401), ("Basic first-key", 401), ("first-key", 401), ("Bearer", 401), ("", 401),
        ("Bearer \xe9", 401),
    ],
)  # fmt: skip
def test_only_a_known_key_opens(header, status):
    async def body():
        async with http(idle_app(api_key=KEYS)[0]) as client:
            headers = [(b"authorization", header.encode("latin-1"))]
            assert (await client.get("/version", headers=headers)).status_code == status

    run(body)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": "second-key"}, 200),
        ({"x-api-key": "third-key"}, 401),
        ({"x-api-key": "third-key", "authorization": "Bearer first-key"}, 200),
        ({"x-api-key": "first-key", "authorization": "Bearer third-key"}, 401),
    ],
)
def test_a_key_may_come_as_anthropics_clients_send_it(headers, status):
    async def body():
        async with http(idle_app(api_key=KEYS)[0]) as client:
            assert (await client.get("/version", headers=headers)).status_code == status

    run(body)


def test_without_keys_everything_is_open():
    async def body():
        async with http(idle_app()[0]) as client:
            assert (await client.get("/version")).json() == {"version": server_version()}

    run(body)


# --- body size ---


def test_a_declared_body_over_the_limit_is_refused_with_both_numbers():
    async def body():
        async with http(idle_app(max_body_bytes=2048)[0]) as client:
            error = check_error(await client.post("/v1/completions", content=b"x" * 5000), 413, "body_too_large")
            assert "5000" in error["message"] and "2048" in error["message"]

    run(body)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
def test_a_chunked_body_over_the_limit_is_refused(path, caplog):
    async def body():
        sent = 0

        async def chunks():
            nonlocal sent
            for _ in range(100):
                sent += 500
                yield b"x" * 500

        app, metrics, _ = idle_app(max_body_bytes=2048)
        async with http(app) as client:
            error = check_error(await client.post(path, content=chunks()), 413, "body_too_large")
            assert "more than 2048" in error["message"]
            assert sent == 2500  # no more was read than it takes to know
        assert metrics.registry.get_sample_value("headrace_request_errors_total", {"code": "body_too_large"}) == 1

    run(body)
    assert caplog.records == []


def test_a_body_of_exactly_the_limit_is_read():
    async def body():
        async with http(idle_app(max_body_bytes=2048)[0]) as client:
            padding = 2048 - len('{"nonsense": ""}')
            content = json.dumps({"nonsense": "x" * padding}).encode()
            assert len(content) == 2048
            response = await client.post(
                "/v1/completions", content=content, headers={"content-type": "application/json"}
            )
            assert response.status_code == 400

    run(body)


# --- errors ---


def test_unknown_routes_and_methods():
    async def body():
        async with http(idle_app()[0]) as client:
            assert "/v1/nowhere" in check_error(await client.get("/v1/nowhere"), 404, "not_found")["message"]
            for path, wrong, right in (("/v1/completions", "GET", "POST"), ("/v1/models", "POST", "GET")):
                response = await client.request(wrong, path)
                assert right in check_error(response, 405, "method_not_allowed")["message"]
                assert response.headers["allow"] == right

    run(body)


def test_what_nobody_foresaw_is_a_500_with_one_traceback_in_the_log(caplog):
    async def body():
        app, metrics, _ = idle_app()

        @app.get("/broken")
        async def broken() -> None:
            raise RuntimeError("secret detail \udcff")

        async with http(app) as client:
            response = await client.get("/broken", headers={"x-request-id": "mine-1"})
            error = check_error(response, 500, "internal_error")
            assert "secret" not in error["message"]
            assert response.headers["x-request-id"] == "mine-1"
        assert metrics.registry.get_sample_value("headrace_request_errors_total", {"code": "internal_error"}) == 1

    run(body)
    assert len(caplog.records) == 1
    assert "secret detail" in caplog.text


# --- request ids and access log ---


def test_request_ids_are_the_clients_own_if_they_are_plain():
    async def body():
        async with http(idle_app()[0]) as client:
            kept = await client.get("/live", headers={"x-request-id": "abc-1.2:3"})
            assert kept.headers["x-request-id"] == "abc-1.2:3"
            for offered in ("a b", "x" * 129, "", "a\tb"):
                response = await client.get("/live", headers={"x-request-id": offered})
                assert re.fullmatch(r"req-[0-9a-f]{24}", response.headers["x-request-id"])

    run(body)


def test_the_access_log_has_one_line_a_request_and_no_text(caplog):
    async def body():
        async with running(settings=Settings(access_log=True)) as rig, rig.http() as client:
            payload = {"prompt": [5, 6], "max_tokens": 3, "n": 2, "user": "somebody"}
            assert (await client.post("/v1/completions", json=payload)).status_code == 200
            await client.get("/v1/no%0Awhere")

    with caplog.at_level(logging.INFO, "headrace.access"):
        run(body)
    lines = [record.getMessage() for record in caplog.records if record.name == "headrace.access"]
    assert len(lines) == 2
    for part in ("method=POST path=/v1/completions status=200", "sequences=2", "prompt_tokens=4", "cached_tokens=6",
                 "completion_tokens=6", "reason=length", "preemptions=2"):  # fmt: skip
        assert part in lines[0]
    assert "somebody" not in lines[0]
    shown = dict(pair.split("=", 1) for pair in lines[0].split(" "))
    times = ["validation_ms", "waiting_ms", "queue_ms", "prefill_ms", "decode_ms"]
    assert [key for key in shown if key in times] == times
    assert 0 < float(shown["validation_ms"]) <= float(shown["queue_ms"])
    assert "path=/v1/no%0Awhere status=404" in lines[1]
    assert "error=not_found" in lines[1]


def test_the_access_log_names_the_tenant_and_the_field_and_never_the_key(caplog):
    async def body():
        settings = {"access_log": True, "api_key": ["sesame"], "key_names": ["the shop"]}
        async with http(idle_app(**settings)[0]) as client:
            for payload in ({"prompt": "x", "max_tokens": -1}, {"prompt": "x", "a b\nstatus=200": 1}):
                headers = {"authorization": "Bearer sesame"}
                assert (await client.post("/v1/completions", json=payload, headers=headers)).status_code == 400
            await client.get("/v1/models")

    with caplog.at_level(logging.INFO, "headrace.access"):
        run(body)
    lines = [record.getMessage() for record in caplog.records if record.name == "headrace.access"]
    assert "key=the%20shop" in lines[0] and lines[0].endswith("error=invalid_value param=max_tokens")
    assert lines[1].endswith("error=unknown_field param=a%20b%0Astatus%3D200")
    assert "key=" not in lines[2] and "param=" not in lines[2] and "status=401" in lines[2]
    assert not any("sesame" in line for line in lines)


# --- the operator's routes ---


def test_while_the_engine_starts_live_answers_and_ready_tells_the_phase():
    async def body():
        until = lambda rig: bool(rig.processes)  # noqa: E731
        async with running("--start", "never", until=until) as rig, rig.http() as client:
            assert (await client.get("/live")).json() == {"status": "live"}
            for path in ("/ready", "/health"):
                response = await client.get(path)
                assert "starting" in check_error(response, 503, "unavailable")["message"]
                assert int(response.headers["retry-after"]) >= 1
            # Probes were answered, which are not requests.
            assert rig.sample("headrace_request_errors_total", code="unavailable") == 0
            response = await client.post("/v1/completions", json={"prompt": [1]})
            check_error(response, 503, "unavailable")
            assert rig.sample("headrace_request_errors_total", code="unavailable") == 1
            assert int(response.headers["retry-after"]) >= 1

    run(body)


def test_asking_how_an_engine_is_costs_it_nothing():
    async def body():
        async with running() as rig, rig.http() as client:
            rig.client.status.last_token -= 1e6  # no token for long: nobody asked for one
            for path in ("/ready", "/health") * 3:
                assert (await client.get(path)).status_code == 200
            assert rig.client.open_count == rig.client.status.stats.steps == 0
            assert len(await read(rig.submit())) == 3
            health = (await client.get("/health")).json()
            assert health == {
                "status": "healthy",
                "doing": health["doing"],
                "steps": 3,
                "last_token_seconds_ago": health["last_token_seconds_ago"],
            }  # engines are listed only where there are several
            assert health["doing"] in ("step", "idle")  # a heartbeat may have come after the last step
            await eventually(lambda: rig.client.status.liveness.doing == "idle")

    run(body)


def test_a_stopped_engine_is_not_ready_until_it_goes_on(caplog):
    async def body():
        async with running(settings=Settings()) as rig, rig.http() as client:
            os.kill(rig.processes[0].pid, signal.SIGSTOP)
            try:
                await eventually(lambda: not rig.client.status.usable)
                for path in ("/ready", "/health"):
                    response = await client.get(path)
                    error = check_error(response, 503, "unavailable")
                    assert error["message"].startswith("The engine hangs: it has said nothing for ")
                    assert int(response.headers["retry-after"]) >= 1
                check_error(await client.post("/v1/completions", json={"prompt": [5]}), 503, "unavailable")
                assert rig.sample("headrace_engine_up") == 0
                assert (await client.get("/live")).status_code == 200
            finally:
                os.kill(rig.processes[0].pid, signal.SIGCONT)
            await eventually(lambda: rig.client.status.usable)
            assert [(await client.get(path)).status_code for path in ("/ready", "/health")] == [200, 200]
            await eventually(lambda: rig.sample("headrace_engine_up") == 1)
            assert len(await read(rig.submit())) == 3 and len(rig.processes) == 1

    run(body)
    assert [record.getMessage().partition(": ")[2][:11] for record in caplog.records] == ["hangs: it h"]


def test_an_engine_whose_step_does_not_end_is_not_healthy():
    async def body():
        async with running(settings=Settings(health_seconds=0.2)) as rig, rig.http() as client:
            await read(rig.submit())  # so that it is known how long its steps take
            waiting = [rig.submit(STUCK), *(rig.submit(HOLD) for _ in range(5))]
            await eventually(lambda: not rig.client.status.usable)
            for path in ("/ready", "/health"):
                message = ""
                while "has waited for" not in message:  # on a busy machine its heartbeats may be late, too
                    message = check_error(await client.get(path), 503, "unavailable")["message"]
                assert message.endswith(" s for a step of 100 tokens.")
            for stream in waiting:
                stream.close()

    run(body)


def test_a_busy_engine_is_healthy_however_much_waits():
    async def body():
        async with running(settings=Settings(health_seconds=0.05)) as rig, rig.http() as client:
            streams = [rig.submit(HOLD) for _ in range(50)]
            await eventually(lambda: rig.client.status.stats.running == 50)
            await asyncio.sleep(0.2)  # no token came for longer than health_seconds
            assert [(await client.get(path)).status_code for path in ("/ready", "/health")] == [200, 200]
            assert rig.client.open_count == 50
            for stream in streams:
                stream.close()

    run(body)


def test_health_fails_with_the_cause_once_the_engine_is_dead():
    async def body():
        until = lambda rig: rig.client.status.state == "dead"  # noqa: E731
        async with running("--start", "refuse", until=until) as rig, rig.http() as client:
            error = check_error(await client.get("/health"), 503, "unavailable")
            assert "no such weights" in error["message"]

    run(body)


def test_a_request_that_kills_engines_is_a_500_of_its_own_code():
    async def body():
        async with running() as rig, rig.http() as client:
            response = await client.post("/v1/completions", json={"prompt": [DIE], "max_tokens": 3})
            check_error(response, 500, "poison_request")
            await eventually(lambda: rig.client.status.state == "ready")
            response = await client.post(
                "/v1/completions", json={"prompt": [5], "max_tokens": 3, "return_token_ids": True}
            )
            assert response.json()["usage"]["completion_tokens"] == 3
            assert rig.sample("headrace_request_errors_total", code="poison_request") == 1
            assert rig.sample("headrace_engine_restarts_total") == 2

    run(body)


def test_a_full_queue_is_a_429():
    async def body():
        async with running(settings=Settings(max_waiting=1)) as rig, rig.http() as client:
            holds = [rig.submit(HOLD)]
            await eventually(lambda: rig.client.status.stats.running == 1)
            holds.append(rig.submit(STUCK))  # never reported as running
            response = await client.post("/v1/completions", json={"prompt": [5], "max_tokens": 3})
            assert "max_waiting is 1" in check_error(response, 429, "queue_full")["message"]
            assert int(response.headers["retry-after"]) >= 1
            for stream in holds:
                stream.close()

    run(body)


def test_metrics_speak_both_formats():
    async def body():
        async with running() as rig, rig.http() as client:
            await client.post("/v1/completions", json={"prompt": [5], "max_tokens": 3})
            plain = await client.get("/metrics")
            assert plain.headers["content-type"].startswith("text/plain; version=")
            assert 'headrace_sequences_finished_total{reason="length"} 1.0' in plain.text
            assert "headrace_time_to_first_token_seconds_count 1.0" in plain.text
            assert f'token="{TOKEN}"' not in plain.text
            accept = {"accept": "application/openmetrics-text; version=1.0.0"}
            modern = await client.get("/metrics", headers=accept)
            assert modern.headers["content-type"].startswith("application/openmetrics-text")
            assert modern.text.endswith("# EOF\n")

    run(body)


# --- draining ---


def test_draining_refuses_new_work_and_lets_open_work_end():
    async def body():
        async with running() as rig, rig.http() as client:
            task = asyncio.create_task(client.post("/v1/completions", json={"prompt": [HOLD], "max_tokens": 3}))
            await eventually(lambda: rig.client.status.stats.running == 1)
            assert not await rig.drain.idle(0)
            rig.drain.begin()
            assert check_error(await client.get("/ready"), 503, "unavailable")
            response = await client.post("/v1/completions", json={"prompt": [5]})
            assert "shutting down" in check_error(response, 503, "unavailable")["message"]
            assert int(response.headers["retry-after"]) >= 1
            for path in OPERATIONS - {"/ready"}:
                assert (await client.get(path)).status_code == 200
            assert not await rig.drain.idle(0)
            rig.client.abort_all("the server is shutting down")
            assert "the server is shutting down" in check_error(await task, 503, "unavailable")["message"]
            assert await rig.drain.idle(60)

    run(body)
