"""Whatever a header says, the answer is no 5xx: the whole application in this process, given bytes that no client library sends."""

import asyncio
import itertools

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.drawn import drawn
from tests.server.api.scripted import Server

HEADERS = (
    *("accept", "accept-encoding", "accept-language", "authorization", "baggage", "connection", "content-encoding"),
    *("content-length", "content-type", "cookie", "expect", "forwarded", "host", "if-modified-since", "if-none-match"),
    *("origin", "access-control-request-headers", "access-control-request-method", "prefer", "range", "referer"),
    *("te", "traceparent", "tracestate", "transfer-encoding", "user-agent", "x-forwarded-for", "x-forwarded-host"),
    *("x-forwarded-proto", "x-http-method-override", "x-request-id", "last-event-id"),
)
FRAGMENTS = (
    *(
        "",
        " ",
        "\t",
        ",",
        ";",
        ":",
        "=",
        "/",
        "*",
        '"',
        "'",
        "\\",
        "[",
        "]",
        "[::1",
        "]:",
        "@",
        "#",
        "?",
        "%",
        "%zz",
        "://",
    ),
    *("\x00", "\x7f", "\x80", "é", "ÿ", "0", "1", "-1", "1e999", "9" * 400, "nan", "0" * 32, "q=0", 'q="', "q=1.5"),
    *(
        "application/json",
        "application/openmetrics-text",
        "text/plain",
        'version="1.0.0"',
        "version=1.0.0",
        "charset=utf-8",
    ),
    *(
        "charset=",
        "charset=\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
        "boundary=",
        "gzip",
        "identity",
        "br",
    ),
    *(
        "Bearer",
        "Bearer key",
        "Basic",
        "localhost",
        "127.0.0.1",
        "http",
        "https://a.example",
        "null",
        "bytes=0-",
        "00-",
    ),
)
REQUESTS = (
    ("GET", "/metrics", b""),
    ("HEAD", "/metrics", b""),
    ("GET", "/nowhere", b""),
    ("PUT", "/version", b""),
    ("OPTIONS", "/v1/completions", b""),
    ("GET", "/v1/models/x", b""),
    ("POST", "/v1/completions", b'{"prompt": "a", "max_tokens": 1, "x": 1}'),
)
SETTINGS = (
    {},
    {"api_key": ["key"], "cors_origins": ["*"], "unknown_fields": "ignore"},
    {"cors_origins": ["https://a.example"], "allowed_hosts": ["*"], "access_log": True},
)


@pytest.fixture(scope="module")
def ask():
    """The status of a request to the application under one of the settings."""
    with asyncio.Runner() as runner:
        apps = [Server(**settings).app for settings in SETTINGS]
        yield lambda app, request, headers: runner.run(status(apps[app], *request, headers))


async def status(app, method, path, body, headers):
    sent, unread = [], [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return unread.pop() if unread else await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    await app(scope(method, path, headers), receive, send)
    return sent[0]["status"]


def scope(method, path, headers):
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
    }


HEADER = st.tuples(st.sampled_from(HEADERS), st.lists(st.sampled_from(FRAGMENTS), max_size=4).map("".join))


@given(
    app=st.integers(0, len(SETTINGS) - 1),
    request=st.sampled_from(REQUESTS),
    headers=st.lists(HEADER, min_size=1, max_size=3),
)
@example(app=2, request=("GET", "/nowhere", b""), headers=[("host", "[")])
@example(app=2, request=("PUT", "/version", b""), headers=[("host", "[::1"), ("host", "a]")])
@example(app=0, request=("GET", "/metrics", b""), headers=[("accept", 'application/openmetrics-text; version="1.0.0"')])
@example(app=0, request=("GET", "/metrics", b""), headers=[("accept", "application/openmetrics-text; version=x")])
@hypothesis_settings(max_examples=drawn(120))
def test_no_header_is_a_server_error(ask, app, request, headers):
    assert ask(app, request, headers) < 500


@given(accept=st.lists(st.sampled_from(FRAGMENTS), max_size=6).map("".join))
@hypothesis_settings(max_examples=drawn(40))
def test_metrics_are_a_200_whatever_is_accepted(ask, accept):
    assert ask(0, ("GET", "/metrics", b""), [("accept", accept), ("accept", "text/plain;q=0")]) == 200


def test_every_odd_value_of_the_headers_that_are_read(ask):
    names = ("host", "authorization", "content-type", "content-encoding", "x-request-id", "origin")
    cases = itertools.product(range(len(SETTINGS)), names, FRAGMENTS)
    for number, (app, name, value) in enumerate(cases):
        request = REQUESTS[number % len(REQUESTS)]
        assert ask(app, request, [(name, value)]) < 500, (name, value, request)
