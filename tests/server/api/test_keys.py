"""Keys of a file at the doors of a server: who comes in, what each may, what each is told, and what is counted in the end."""

import asyncio
import hashlib
from functools import partial

import pytest

from server.api.completions import completion_job
from server.api.tenants import KeyRing
from server.errors import Unauthorized
from server.keys.key_file import parse_key_file
from server.schema.completions import CompletionRequest
from server.stream.submission import Submission
from server.telemetry.lifetime import Exchange
from tests.server.api.keyed import BODY, COMPLETIONS, bearer, keyed_server, text_of, used
from tests.server.api.scripted import hand_made, run

RATES = {f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")}


@pytest.fixture
def served(tmp_path):
    """Makes a server with these keys, and further settings."""
    return partial(keyed_server, tmp_path / "keys.yaml")


def test_a_key_of_the_file_and_one_of_the_settings_open_the_server_and_nothing_else_does(served):
    async def body():
        server = served({"ann": {}}, api_key=["sésame"], key_names=["old"])
        ask = server.client.get
        for headers in (
            bearer("ann-key"),
            {"x-api-key": "ann-key"},
            {"Authorization": "bearer  ann-key "},
            bearer("sésame".encode().decode("latin-1")),
        ):
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            assert (await ask("/v1/models", headers=raw)).status_code == 200
        basic = {"Authorization": "Basic eDp5", "x-api-key": "ann-key"}
        assert (await ask("/v1/models", headers=basic)).status_code == 200
        wrong = [
            [],
            [(b"authorization", b"Bearer ")],
            [(b"authorization", b"ann-key")],
            [(b"authorization", b"Basic ann-key")],
            [(b"authorization", b"Bearer ann-key\xff")],
            [(b"authorization", b"Bearer " + "ann-kéy".encode())],
            [(b"authorization", b"Bearer " + b"a" * 200_000)],
            [(b"authorization", b"Bearer ann-key"), (b"authorization", b"Bearer ann-key")],
            [(b"x-api-key", b"ann-key"), (b"x-api-key", b"wrong")],
            [(b"authorization", b"Bearer wrong"), (b"x-api-key", b"ann-key")],
            [(b"authorization", b"Bearer " + hashlib.sha256(b"ann-key").hexdigest().encode())],
        ]
        for headers in wrong:
            refused = await ask("/v1/models?api_key=ann-key&key=ann-key", headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key"), headers
            assert refused.headers["www-authenticate"] == "Bearer" and not RATES & refused.headers.keys()
        assert (await ask("/live")).status_code == 200

    run(body)


def test_a_file_without_keys_lets_nobody_in(served):
    async def body():
        server = served({})
        assert (await server.client.get("/v1/models")).status_code == 401

    run(body)


def test_keys_are_found_by_their_hashes_and_expire():
    from configs.settings import Settings

    now = [100.0]
    ring = KeyRing(Settings(api_keys="keys.yaml"), lambda: now[0])
    file = parse_key_file(text_of(ann={"expires": "1970-01-01T00:02:00Z"}, ben={"tenant": "lab", "weight": 3}), "f")
    ring.take(file.entries, file.weights)

    def sender(key):
        return ring.sender([(b"authorization", b"Bearer " + key)])

    assert (sender(b"ann-key").key, sender(b"ben-key").name, sender(b"ben-key").weight) == ("ann", "lab", 3.0)
    assert (ring.of_key("ann", "ann").key, ring.of_key("ben", "lab").key) == ("ann", "ben")
    assert ring.of_key("ben", "ben") is None and ring.of_key("cat", "cat") is None
    now[0] = 120.0
    assert ring.of_key("ann", "ann") is None and ring.of_key("ben", "lab").key == "ben"
    with pytest.raises(Unauthorized, match="The API key ann has expired"):
        sender(b"ann-key")
    ring.take((), {})
    with pytest.raises(Unauthorized):
        sender(b"ben-key")
    assert not KeyRing(Settings()).required


# --- limits ---


def test_a_limited_key_is_told_what_is_left_and_refused_by_the_limits_name(served):
    async def body():
        server = served({"ann": {"requests_per_minute": 2, "tokens_per_minute": 1000}, "ben": {}})
        asked = await server.client.get("/v1/models", headers=bearer("ann-key"))
        assert asked.headers["x-ratelimit-remaining-requests"] == "2", "what only asks does not count"
        first = await server.post(COMPLETIONS, BODY, headers=bearer("ann-key"))
        told = {name: first.headers[name] for name in sorted(RATES)}
        assert told["x-ratelimit-limit-requests"] == "2" and told["x-ratelimit-remaining-requests"] == "1"
        assert told["x-ratelimit-limit-tokens"] == "1000" and told["x-ratelimit-remaining-tokens"] == "988"
        assert told["x-ratelimit-reset-requests"].startswith(("29.", "30")) and told[
            "x-ratelimit-reset-tokens"
        ].endswith("ms")
        wrong = await server.post(COMPLETIONS, {"prompt": 1.5}, headers=bearer("ann-key"))
        assert wrong.status_code == 400 and wrong.headers["x-ratelimit-remaining-requests"] == "0", "it counts, too"
        refused = await server.post(COMPLETIONS, BODY, headers=bearer("ann-key"))
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["type"]) == (429, "rate_limit_exceeded", "rate_limit_error")
        assert "`requests_per_minute` is 2" in error["message"] and "Try again in" in error["message"]
        assert 25 <= int(refused.headers["retry-after"]) <= 30
        assert 25_000 <= int(refused.headers["retry-after-ms"]) <= 30_000
        assert refused.headers["x-ratelimit-remaining-requests"] == "0" and refused.headers.keys() >= RATES
        other = await server.post(COMPLETIONS, BODY, headers=bearer("ben-key"))
        assert other.status_code == 200 and not RATES & other.headers.keys(), "nobody else is held back, or told"
        assert await used(server) == {"ann": [2, 1, 1, 4, 2, 8], "ben": [1, 0, 0, 4, 2, 8]}
        metrics = server.context.metrics.render("")[0].decode()
        assert 'headrace_key_limited_total{key="ann",limit="requests_per_minute"} 1.0' in metrics
        assert 'headrace_key_generation_tokens_total{key="ben"} 8.0' in metrics

    run(body)


def test_tokens_are_reserved_at_first_and_counted_exactly_in_the_end(served):
    async def body():
        server = served({"ann": {"tokens_per_minute": 40}}, reply="x" * 3)
        remaining = "x-ratelimit-remaining-tokens"
        first = await server.post(
            COMPLETIONS, {"prompt": ["abcd", "ef"], "n": 2, "max_tokens": 4}, headers=bearer("ann-key")
        )
        usage = first.json()["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (6, 16)
        after = await server.client.get("/v1/models", headers=bearer("ann-key"))
        assert int(after.headers[remaining]) == 40 - 22
        refused = await server.post(COMPLETIONS, {"prompt": "abcd", "max_tokens": 30}, headers=bearer("ann-key"))
        assert refused.status_code == 429
        assert (
            "`tokens_per_minute` is 40, 18 of them are left, and this request needs 34"
            in refused.json()["error"]["message"]
        )
        assert int(refused.headers["retry-after"]) in (23, 24)
        too_long = await server.post(COMPLETIONS, {"prompt": "a" * 41, "max_tokens": 1}, headers=bearer("ann-key"))
        assert too_long.status_code == 429 and too_long.headers["x-should-retry"] == "false"
        assert "retry-after" not in too_long.headers
        assert (await used(server))["ann"] == [1, 0, 2, 6, 3, 16]
        assert len(server.process.requests) == 4

    run(body)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_charged_what_was_generated(stream, served):
    async def body():
        server = served({"ann": {"tokens_per_minute": 200, "concurrent_requests": 1}}, reply="x" * 100)
        server.process.gate.clear()
        body = b'{"prompt": "abcd", "max_tokens": 100, "stream": %s}' % str(stream).lower().encode()
        call = hand_made(server.app, COMPLETIONS, body, headers=[(b"authorization", b"Bearer ann-key")])
        while not server.process.requests:
            await asyncio.sleep(0)
        busy = await server.post(COMPLETIONS, BODY, headers=bearer("ann-key"))
        assert (
            busy.status_code == 429 and "`concurrent_requests` is 1, and 1 are open" in busy.json()["error"]["message"]
        )
        assert int(busy.headers["retry-after"]) >= 1
        for _ in range(3):
            server.process.step()
            await asyncio.sleep(0)
        server.context.accounts.look()
        asked = await server.client.get("/v1/models", headers=bearer("ann-key"))
        assert asked.headers["x-ratelimit-remaining-tokens"] == str(200 - 104)
        call.leave.set()
        await call.task
        server.process.gate.set()
        asked = await server.client.get("/v1/models", headers=bearer("ann-key"))
        assert asked.headers["x-ratelimit-remaining-tokens"] == str(200 - 7)
        assert (await used(server))["ann"] == [1, 0, 1, 4, 2, 3]
        assert (await server.post(COMPLETIONS, BODY, headers=bearer("ann-key"))).status_code == 200

    run(body)


def test_a_request_that_the_engine_does_not_take_is_charged_nothing(served):
    async def body():
        server = served({"ann": {"tokens_per_minute": 40}}, ready=False)
        server.context.engines.by_name["engine"].status.info = None
        refused = await server.post(COMPLETIONS, BODY, headers=bearer("ann-key"))
        assert refused.status_code == 503 and refused.headers["x-ratelimit-remaining-tokens"] == "40"
        assert (await used(server))["ann"] == [1, 1, 0, 0, 0, 0]

    run(body)


def test_a_resumable_stream_is_open_until_it_ends_whoever_reads_it(served):
    async def body():
        server = served({"ann": {"concurrent_requests": 1}}, reply="xy")
        server.process.gate.clear()
        body = b'{"prompt": "abcd", "max_tokens": 9, "stream": true, "resumable": true}'
        call = hand_made(server.app, COMPLETIONS, body, headers=[(b"authorization", b"Bearer ann-key")])
        while not server.process.requests:
            await asyncio.sleep(0)
        server.process.step()
        await call.started.wait()
        call.leave.set()
        await call.task
        assert (await server.post(COMPLETIONS, BODY, headers=bearer("ann-key"))).status_code == 429
        server.process.gate.set()
        while server.process.playing:
            await asyncio.sleep(0)
        while (await used(server))["ann"][0] == 0:
            await asyncio.sleep(0)
        assert (await used(server))["ann"] == [1, 0, 1, 4, 2, 3]

    run(body)


def test_a_changed_file_holds_from_the_next_request_on_and_open_ones_go_on(served):
    async def body():
        server = served({"ann": {}, "ben": {}})
        server.process.gate.clear()
        call = hand_made(server.app, COMPLETIONS, b'{"prompt": "a"}', headers=[(b"authorization", b"Bearer ben-key")])
        while not server.process.requests:
            await asyncio.sleep(0)
        path = server.settings.api_keys
        with open(path, "w") as file:
            file.write(text_of(ann={"requests_per_minute": 1}, carl={"tenant": "lab", "weight": 4}))
        await server.keys._file.look()
        await server.keys._file.look()
        for name, status in (("ben", 401), ("carl", 200), ("ann", 200)):
            answer = await server.client.get("/v1/models", headers=bearer(f"{name}-key"))
            assert answer.status_code == status, name
        assert answer.headers["x-ratelimit-limit-requests"] == "1"
        server.process.gate.set()
        await call.task
        assert call.sent[0]["status"] == 200
        with open(path, "w") as file:
            file.write("keys:")
        await server.keys._file.look()
        await server.keys._file.look()
        assert (await server.client.get("/v1/models", headers=bearer("carl-key"))).status_code == 200
        metrics = server.context.metrics.render("")[0].decode()
        for line in (
            "headrace_api_keys 2.0",
            "headrace_api_keys_file_up 0.0",
            'headrace_api_keys_reads_total{outcome="taken"} 1.0',
            'headrace_tenant_weight{tenant="lab"} 4.0',
            'headrace_key_requests_total{key="ben"} 1.0',
        ):
            assert line in metrics, line
        assert 'tenant_weight{tenant="ben"}' not in metrics

    run(body)


def test_what_runs_beside_is_counted_and_no_limit_holds_for_it(served):
    async def body():
        server = served({"ann": {"requests_per_minute": 1, "tokens_per_minute": 5, "concurrent_requests": 1}})
        beside = server.context.accounts.beside("ann")
        for number in range(3):
            exchange = Exchange(request_id=f"r{number}", received=0.0)
            exchange.meter = meter = beside.begin(exchange)
            job = completion_job(CompletionRequest(prompt="abcd", max_tokens=8), server.context)
            submission = Submission(job, server.engine, exchange)
            async for _ in submission.streams[0]:
                pass
            submission.close()
            meter.answered()
        asked = await server.client.get("/v1/models", headers=bearer("ann-key"))
        assert asked.headers["x-ratelimit-remaining-tokens"] == "5" and beside.headers() == []
        assert (await used(server))["ann"] == [3, 0, 0, 12, 6, 24]

    run(body)


# --- what a key may ---


def test_a_key_sees_and_uses_its_models_alone(served):
    async def body():
        server = served({"ann": {"models": "[org/small]"}, "ben": {"models": "[other]"}})
        listed = await server.client.get("/v1/models", headers=bearer("ann-key"))
        assert [card["id"] for card in listed.json()["data"]] == ["org/small"]
        assert (await server.client.get("/v1/models/small", headers=bearer("ann-key"))).status_code == 404
        answer = await server.post(COMPLETIONS, BODY, headers=bearer("ann-key"))
        assert answer.json()["model"] == "org/small", "the first that it may use"
        for path, fields in ((COMPLETIONS, BODY), ("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
            for key, asked in (("ann", "small"), ("ann", "none"), ("ben", "small"), ("ben", None)):
                refused = await server.post(
                    path, fields | ({"model": asked} if asked else {}), headers=bearer(f"{key}-key")
                )
                error = refused.json()["error"]
                assert (refused.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
                assert ("org/small" in error["message"]) == (key == "ann")

    run(body)


def test_priorities_of_a_key(served):
    async def body():
        server = served(
            {"ann": {"highest_priority": -5}, "ben": {}, "carl": {"highest_priority": 3, "tenant": "lab", "weight": 2}}
        )
        for key, fields in (
            ("ann", {"priority": -5}),
            ("ann", {}),
            ("ben", {"priority": -9}),
            ("carl", {}),
            ("carl", {"priority": 4}),
        ):
            assert (await server.post(COMPLETIONS, BODY | fields, headers=bearer(f"{key}-key"))).status_code == 200
        asked = [
            (request.priority, request.own_priority, request.tenant, request.weight)
            for request in server.process.requests
        ]
        assert asked == [
            (-5, 0, "ann", 1.0), (0, 0, "ann", 1.0), (0, -9, "ben", 1.0), (3, 0, "lab", 2.0), (4, 0, "lab", 2.0)
        ]  # fmt: skip
        for key, priority, limit in (("ann", -6, -5), ("carl", 0, 3)):
            refused = await server.post(COMPLETIONS, BODY | {"priority": priority}, headers=bearer(f"{key}-key"))
            error = refused.json()["error"]
            assert (refused.status_code, error["param"]) == (400, "priority")
            assert (
                f"`priority` must be at least {limit} with this API key (highest_priority), got {priority}"
                in error["message"]
            )

    run(body)


def test_salts_of_keys_part_them_and_nobody_can_send_another_ones(served):
    async def body():
        keys = {"ann": {"cache_salt": "lab"}, "ben": {"cache_salt": "lab"}, "carl": {}, "dora": {"cache_salt": "desk"}}
        server = served(keys)
        for key in keys:
            await server.post(COMPLETIONS, BODY, headers=bearer(f"{key}-key"))
        ann, ben, carl, dora = (request.cache_salt for request in server.process.requests)
        assert ann == ben and ann != dora and carl == ""
        await server.post(COMPLETIONS, BODY | {"cache_salt": ann}, headers=bearer("carl-key"))
        await server.post(COMPLETIONS, BODY | {"cache_salt": ":" + ann}, headers=bearer("carl-key"))
        await server.post(COMPLETIONS, BODY | {"cache_salt": "mine"}, headers=bearer("carl-key"))
        sent = [request.cache_salt for request in server.process.requests[4:]]
        assert sent == [":" + ann, "::" + ann, "mine"]

    run(body)
