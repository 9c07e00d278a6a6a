"""The whole application at its door: Unix sockets, a path prefix, proxies, CORS, HEAD, upgrades, over real sockets."""

import asyncio
import json

import httpx
import pytest

from configs.settings import Settings
from server.api.endpoint import GetEndpoint
from server.api.endpoints import ENDPOINTS
from server.engines.engines import Engines
from server.listen import listen_unix
from tests.server.engines.harness import make_app, run, running
from tests.server.http import real_server
from tests.server.http.real_server import answers
from tests.server.http.test_whole_server import post

pytestmark = pytest.mark.processes

CHAT = "https://chat.example"
ASKED = {"prompt": [5, 6], "max_tokens": 4}


def served(check, listeners=None, settings=None):
    """Run `check(server)` on the application over a scripted engine."""

    async def body():
        async with running(settings=settings or Settings()) as rig:
            app = make_app(rig.settings, Engines([rig.client]), rig.metrics, rig.drain)
            async with real_server.running(app, None, listeners, rig.settings) as server:
                await asyncio.wait_for(check(server), 60)

    run(body)


def client(server, **options) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", **options)


@pytest.fixture
def path(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("s") / "x.sock")


def test_a_unix_socket_serves_streams_and_many_clients(path):
    async def check(server):
        transport = httpx.AsyncHTTPTransport(uds=path)
        async with httpx.AsyncClient(transport=transport, base_url="http://llm.example") as asking:
            found = await asyncio.gather(*(asking.post("/v1/completions", json=ASKED) for _ in range(8)))
            assert [each.status_code for each in found] == [200] * 8
            async with asking.stream("POST", "/v1/completions", json=ASKED | {"stream": True}) as response:
                lines = [line async for line in response.aiter_lines() if line]
            assert lines[-1] == "data: [DONE]"

    served(check, listen_unix(path, 0o600), Settings(uds=path))


def test_who_comes_by_a_unix_socket_is_told_by_its_proxy(path, caplog):
    caplog.set_level("INFO", "headrace.access")

    async def check(server):
        transport = httpx.AsyncHTTPTransport(uds=path)
        async with httpx.AsyncClient(transport=transport, base_url="http://llm.example") as asking:
            await asking.get("/version")
            await asking.get("/version", headers={"X-Forwarded-For": "192.0.2.7"})
        assert [" client=- " in line for line in caplog.messages] == [True, False]
        assert " client=192.0.2.7 " in caplog.messages[1]

    served(check, listen_unix(path, 0o600), Settings(uds=path, access_log=True))


@pytest.mark.parametrize(
    ("trusted", "asked_for", "client_is"),
    [
        ([], "192.0.2.7", "192.0.2.7"),  # a proxy on this machine
        ([], "192.0.2.7, 10.0.0.9", "10.0.0.9"),  # which was asked by one that may be anybody
        (["10.0.0.0/8"], "192.0.2.7, 10.0.0.9", "192.0.2.7"),
        (["*"], "192.0.2.7, 198.51.100.1", "192.0.2.7"),
    ],
)
def test_only_proxies_that_are_trusted_are_believed(trusted, asked_for, client_is, caplog):
    caplog.set_level("INFO", "headrace.access")

    async def check(server):
        async with client(server) as asking:
            await asking.get("/version", headers={"X-Forwarded-For": asked_for})
        assert f" client={client_is} " in caplog.messages[-1]

    served(check, settings=Settings(access_log=True, forwarded_allow_ips=trusted))


def test_under_a_path_everything_is_found_whether_the_proxy_strips_it_or_not():
    async def check(server):
        async with client(server) as asking:
            for prefix in ("", "/llm/api"):
                assert (await asking.get(f"{prefix}/live")).status_code == 200  # without a key
                assert (await asking.get(f"{prefix}/v1/models")).status_code == 401
                headers = {"Authorization": "Bearer k"}
                answer = await asking.post(f"{prefix}/v1/completions", json=ASKED, headers=headers)
                assert answer.status_code == 200
                document = (await asking.get(f"{prefix}/openapi.json", headers=headers)).json()
                assert document["servers"] == [{"url": "/llm/api"}]
                assert "/v1/completions" in document["paths"]
            pages = [await asking.get(f"/llm/api{end}") for end in ("", "/", "?a=b")]
            assert [page.status_code for page in pages] == [200] * 3 and len({page.text for page in pages}) == 1
            for wrong in ("/llm", "/llm/apis/live", "/llm/api/llm/api/live", "/other/live"):
                assert (await asking.get(wrong, headers=headers)).status_code == 404

    served(check, settings=Settings(root_path="/llm/api", api_key=["k"]))


def test_without_a_path_the_document_names_no_server():
    async def check(server):
        async with client(server) as asking:
            assert "servers" not in (await asking.get("/openapi.json")).json()

    served(check)


def test_a_page_of_an_allowed_origin_asks_first_without_a_key_and_reads_answers_and_errors():
    preflight = {
        "Origin": CHAT,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-request-id",
        "Access-Control-Request-Private-Network": "true",
    }

    async def check(server):
        async with client(server) as asking:
            for method in ("POST", "GET", "HEAD", "DELETE"):
                headers = preflight | {"Access-Control-Request-Method": method}
                allowed = await asking.options("/v1/completions", headers=headers)
                assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == CHAT
                assert "authorization" in allowed.headers["access-control-allow-headers"]
                assert method in allowed.headers["access-control-allow-methods"]
                assert allowed.headers["access-control-allow-private-network"] == "true"
            key = {"Authorization": "Bearer k", "Origin": CHAT}
            for status, answer in (
                (401, await asking.post("/v1/completions", json=ASKED, headers={"Origin": CHAT})),
                (400, await asking.post("/v1/completions", json={"prompt": 1.5}, headers=key)),
                (404, await asking.get("/nowhere", headers=key)),
                (413, await asking.post("/v1/completions", content=b" " * 5000, headers=key)),
                (200, await asking.post("/v1/completions", json=ASKED, headers=key)),
            ):
                assert answer.status_code == status and answer.headers["access-control-allow-origin"] == CHAT
                exposed = answer.headers["access-control-expose-headers"].lower()
                assert "x-request-id" in exposed and "retry-after" in exposed
                assert "Origin" in answer.headers["vary"]
            refused = await asking.options("/v1/completions", headers=preflight | {"Origin": "https://evil.example"})
            assert refused.status_code == 403 and "access-control-allow-origin" not in refused.headers

    served(check, settings=Settings(api_key=["k"], cors_origins=[CHAT], max_body_bytes=4096))


def test_without_cors_no_page_is_told_anything():
    async def check(server):
        async with client(server) as asking:
            answer = await asking.get("/version")
            assert not [name for name in answer.headers if name.startswith("access-control")]

    served(check)


def test_head_is_answered_wherever_get_is():
    endless = {"text/event-stream", "application/x-ndjson"}  # have tests of their own
    gets = [each for each in ENDPOINTS if isinstance(each, GetEndpoint) and not endless & set(each.content)]
    paths = [each.path for each in gets if "{" not in each.path]

    async def check(server):
        async with client(server) as asking:
            for path in [*paths, "/openapi.json"]:
                head, got = await asking.head(path), await asking.get(path)
                assert head.status_code == got.status_code and head.content == b"", path
                assert head.headers.get("content-type") == got.headers.get("content-type"), path

    assert {"/live", "/ready", "/health", "/metrics", "/version", "/v1/models"} <= set(paths)
    served(check)


def test_an_upgrade_to_http_2_is_answered_over_http_1_and_its_body_is_read():
    async def check(server):
        lines = [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"]
        ((status, headers, body),) = answers(await server.ask(post("/v1/completions", ASKED, *lines)))
        assert status == 200 and json.loads(body)["usage"]["prompt_tokens"] == 2 and "upgrade" not in headers

    served(check)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_of_http_1_0_gets_no_chunks(stream):
    async def check(server):
        data = await server.ask(post("/v1/completions", ASKED | {"stream": stream}, version="1.0"))
        ((status, headers, body),) = answers(data)
        assert status == 200 and "transfer-encoding" not in headers and headers["connection"] == "close"
        assert (body.endswith(b"data: [DONE]\n\n") and body.startswith(b"data: ")) if stream else json.loads(body)

    served(check)
