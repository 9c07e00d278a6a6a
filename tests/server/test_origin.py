"""Which pages and names are refused, through the whole application, and that the refusal says what to do."""

import pytest

from configs.settings import Settings
from server.drain import Drain
from server.engines.client import EngineClient
from server.engines.engines import Engines
from server.origin import is_loopback
from server.telemetry.metrics import Metrics
from tests.server.engines.harness import http, make_app, run

PATHS = ("/live", "/v1/completions", "/nowhere")


def status_of(
    headers: dict[str, str], method: str = "GET", path: str = "/version", **settings
) -> tuple[int, str, dict]:
    async def ask():
        typed, metrics = Settings(**settings), Metrics()
        app = make_app(typed, Engines([EngineClient("engine", typed, metrics)]), metrics, Drain())
        async with http(app) as client:
            response = await client.request(method, path, headers={"authorization": "Bearer k"} | headers)
            answers.append((response.status_code, response.text, dict(response.headers)))

    answers: list[tuple[int, str, dict]] = []
    run(ask)
    return answers[0]


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "PUT"])
@pytest.mark.parametrize("path", PATHS)
def test_a_foreign_page_is_refused_whatever_it_asks(method, path):
    status, text, _ = status_of({"origin": "https://evil.example", "host": "localhost:8000"}, method, path)
    assert status == 403
    assert method == "HEAD" or ("--cors-origins" in text and "evil.example" in text and "forbidden_origin" in text)


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("http://localhost:8000", "localhost:8000", True), ("HTTP://LOCALHOST:8000", "localhost:8000", True),
        ("http://localhost", "localhost:80", True), ("https://localhost:443", "localhost", True),
        ("http://localhost:8001", "localhost:8000", False), ("null", "localhost:8000", False), ("", "localhost", False),
        ("http://127.0.0.1:8000", "localhost:8000", False), ("file://", "localhost", False), ("http://", "", False),
        ("http://localhost.evil.example", "localhost", False), ("ftp://localhost", "localhost", False),
        ("chrome-extension://abc", "localhost", False), ("http://user@localhost:8000", "localhost:8000", False),
    ],
)  # fmt: skip
def test_a_page_of_its_own_origin_may_ask(origin, host, allowed):
    assert (status_of({"origin": origin, "host": host})[0] != 403) == allowed


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost:8000", True), ("127.0.0.1:8000", True), ("127.8.9.1", True), ("[::1]:8000", True), ("app.localhost", True),
        ("localhost.", True), ("LOCALHOST", True), ("evil.example:8000", False), ("192.168.1.5", False), ("0.0.0.0", False),
        ("localhost.evil.example", False), ("127.0.0.1.evil.example", False), ("[::1].evil.example", False),
        ("localhost:8000@evil.example", False), ("[fe80::1]", False), ("2130706433", False),
    ],
)  # fmt: skip
def test_without_a_key_on_loopback_only_names_of_loopback_are_served(host, allowed):
    status, text, _ = status_of({"host": host})
    assert status == (200 if allowed else 403)
    assert allowed or ("--allowed-hosts" in text and "forbidden_host" in text)


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({"api_key": ["k"]}, 200), ({"host": "0.0.0.0"}, 200), ({"allowed_hosts": ["my.example"]}, 200),
        ({"allowed_hosts": ["MY.example"]}, 200), ({"allowed_hosts": ["*"]}, 200), ({"allowed_hosts": ["other"]}, 403),
        ({"host": "0.0.0.0", "allowed_hosts": ["other"]}, 403), ({"api_key": ["k"], "allowed_hosts": ["other"]}, 403),
        ({"host": "localhost"}, 403), ({"host": "::1"}, 403), ({"uds": "x"}, 200),
    ],
)  # fmt: skip
def test_names_that_are_allowed(settings, status):
    assert status_of({"host": "my.example:8000"}, **settings)[0] == status


@pytest.mark.parametrize("path", ["/live", "/ready", "/health"])
@pytest.mark.parametrize("host", ["10.1.2.3:8000", "pod.example"])
def test_a_probe_may_find_the_server_under_any_name_and_a_foreign_page_may_not_probe(path, host):
    for settings in ({}, {"allowed_hosts": ["llm.example.com"], "host": "0.0.0.0"}):
        assert status_of({"host": host}, path=path, **settings)[0] == (200 if path == "/live" else 503)
        assert status_of({"host": host, "origin": "http://evil.example"}, path=path, **settings)[0] == 403
        assert status_of({"host": host}, path="/v1/models", **settings)[0] == 403


def test_a_rebound_name_is_refused_though_it_is_of_one_origin():
    assert status_of({"host": "evil.example:8000", "origin": "http://evil.example:8000"})[0] == 403


def test_a_page_that_cors_allows_may_ask_and_read():
    chat = {"origin": "https://chat.example", "host": "localhost"}
    status, _, headers = status_of(chat, cors_origins=["https://chat.example/"])
    assert status == 200 and headers["access-control-allow-origin"] == "https://chat.example"
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    status, _, headers = status_of(
        chat | asked, "OPTIONS", "/v1/completions", cors_origins=["https://chat.example"], api_key=["k"]
    )
    assert status == 200 and "POST" in headers["access-control-allow-methods"]
    status, _, headers = status_of(chat, cors_origins=["HTTPS://Chat.example"])
    assert status == 200 and headers["access-control-allow-origin"] == "https://chat.example"
    assert status_of(chat | {"origin": "https://other.example"}, cors_origins=["https://chat.example"])[0] == 403
    status, _, headers = status_of(chat, cors_origins=["*"])
    assert status == 200 and headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(("name", "loopback"), [("", False), ("::1", True), ("10.0.0.1", False)])
def test_loopback(name, loopback):
    assert is_loopback(name) == loopback


@pytest.mark.parametrize("path", [*PATHS, "/metrics", "/openapi.json"])
def test_head_is_get_without_a_body(path):
    get, head = status_of({}, "GET", path), status_of({}, "HEAD", path)
    assert head[0] == get[0] and head[1] == ""
    assert {name for name in get[2] if name != "x-request-id"} == {name for name in head[2] if name != "x-request-id"}
