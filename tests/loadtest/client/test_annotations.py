"""Marks in Grafana: what is sent, to a receiver that stands in for it, and that nothing of it can spoil a run."""

import asyncio
import base64
import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadtest.cli import run_replay_command
from loadtest.client.annotations import TAG, Grafana, marked
from server.monitoring.panels import LOAD_TEST_TAG

pytestmark = pytest.mark.processes

TESTS = Path(__file__).parents[1]


@contextmanager
def receiver(status=200, answer=b'{"message": "Annotation added", "id": 7}'):
    """Grafana's address, and what it is sent: method, path, Authorization, body."""
    sent = []

    class Handler(BaseHTTPRequestHandler):
        def take(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            sent.append((self.command, self.path, self.headers["Authorization"], body))
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_PATCH = take

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", sent
        finally:
            server.shutdown()
            thread.join()


def mark(grafana, outcome="", error=None):
    async def run():
        async with marked(grafana, "a run") as made:
            made.outcome = outcome
            if error is not None:
                raise error

    asyncio.run(run())


def test_a_run_is_marked_when_it_begins_and_ends():
    with receiver() as (host, sent):
        mark(Grafana(f"http://{host}/", token="secret"), "12 ended")
    (post, path, key, begun), (patch, changed, _, ended) = sent
    assert (post, path, key) == ("POST", "/api/annotations", "Bearer secret")
    assert (patch, changed) == ("PATCH", "/api/annotations/7")
    assert begun["text"] == "a run" and ended["text"] == "a run: 12 ended"
    assert begun["tags"] == [TAG, "running"] and ended["tags"] == [TAG]
    assert 1_600_000_000_000 < begun["time"] <= ended["timeEnd"]


def test_the_dashboards_look_for_the_tag_that_marks_have():
    assert TAG == LOAD_TEST_TAG


def test_a_run_that_fails_is_marked_to_its_end():
    with receiver() as (host, sent), pytest.raises(ZeroDivisionError):
        mark(Grafana(f"http://{host}"), error=ZeroDivisionError())
    assert [method for method, *_ in sent] == ["POST", "PATCH"] and sent[1][3]["text"] == "a run"


def test_a_password_in_the_address_is_sent_and_never_printed(capsys):
    with receiver(status=401) as (host, sent):
        mark(Grafana(f"http://ann:hidden@{host}/under/a/path"))
    assert [(sent[0][1], sent[0][2])] == [
        ("/under/a/path/api/annotations", f"Basic {base64.b64encode(b'ann:hidden').decode()}")
    ]
    told = capsys.readouterr().err
    assert told == "The run is not marked in Grafana: POST /api/annotations: HTTP 401\n" and len(sent) == 1


@pytest.mark.parametrize("answer", [b"not JSON", b"[]", b'{"message": "no id"}'])
def test_an_odd_answer_is_no_mark_and_no_error(answer):
    with receiver(answer=answer) as (host, sent):
        mark(Grafana(f"http://{host}"))
    assert len(sent) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "http://[", "ftp://x"])
def test_where_there_is_no_grafana_the_run_goes_on(url, capsys):
    mark(Grafana(url))
    assert "not marked in Grafana" in capsys.readouterr().err


def test_without_a_grafana_nothing_is_sent():
    mark(None)


def test_a_whole_replay_says_what_it_was(capsys):
    stub = subprocess.Popen([sys.executable, TESTS / "stub_server.py"], stdout=subprocess.PIPE, text=True)
    try:
        target = f"http://127.0.0.1:{int(stub.stdout.readline())}/v1"
        with receiver() as (host, sent):
            code = run_replay_command(
                [
                    str(TESTS / "data" / "burstgpt_1.csv"),
                    *("--target", target, "--limit", "4", "--arrivals", "poisson:rate=200", "--quiet"),
                    *(
                        "--max-output",
                        "4",
                        "--max-lateness",
                        "60000",
                        "--annotate",
                        f"http://{host}",
                        "--label",
                        "night",
                    ),
                ]
            )
    finally:
        stub.terminate()
        stub.communicate(timeout=10)
    assert code == 0
    assert [entry[3]["text"] for entry in sent] == [
        f"night: 4 requests to {target}",
        f"night: 4 requests to {target}: 4 ended, 0 of them failed",
    ]
