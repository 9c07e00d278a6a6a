"""The image's HEALTHCHECK asks a server, plain or over TLS, whether it is ready."""

import json
import os
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.server.http.self_signed import needs_openssl, self_signed
from tests.source_tree import ROOT

pytestmark = pytest.mark.processes

COMMAND = json.loads(re.findall(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.M)[0])


@contextmanager
def answering(status: int, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a server that says this of /ready."""

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/ready" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def healthy(port: int, **environment: str) -> bool:
    command = [sys.executable, *COMMAND[1:]]
    environment = {**os.environ, "HEADRACE_PORT": str(port), **environment}
    return subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(("status", "expected"), [(200, True), (503, False)])
def test_it_is_healthy_if_it_is_ready(status, expected):
    with answering(status) as port:
        assert healthy(port) is expected


@needs_openssl
def test_it_is_asked_over_tls_where_it_speaks_tls(tmp_path):
    chain, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    with answering(200, context) as port:
        assert healthy(port, HEADRACE_TLS_CERT=chain)
