"""`headrace chat` and `headrace doctor --url` beside servers that send anything: a sentence, never a traceback or an escape."""

import contextlib
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from server.client import chat
from server.client.api import Api
from server.client.checkup import examine_server, verdict_of

pytestmark = pytest.mark.processes

MODELS = b'{"data": [{"id": "m\\u001b[2J\\n"}]}'
COMPLETION = b'{"usage": {"completion_tokens": 1}}'


class OddServer:
    """Answers each path with these bytes, and with an empty object by default."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.status, self.date = 200, "Mon, 30 Nov 2026 01:45:34 GMT"
        odd = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.rfile.read(int(self.headers.get("content-length", 0)))
                self.send_response_only(200 if self.path == "/v1/models" else odd.status, "\x1b[2J")
                self.send_header("date", odd.date)
                self.end_headers()
                self.wfile.write(odd.answers.get(self.path, b"{}"))

            do_POST = do_GET

            def log_message(self, *_):
                """Nobody reads it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def says(self, answers, status=200, date="Mon, 30 Nov 2026 01:45:34 GMT"):
        self.answers = {"/v1/models": MODELS, "/v1/completions": COMPLETION, **answers}
        self.status, self.date = status, date


@pytest.fixture(scope="module")
def odd():
    odd = OddServer()
    yield odd
    odd.server.shutdown()
    odd.server.server_close()
    odd.thread.join()


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (b'{"choices": [{"message": {"content": "no stream"}}]}', "without data: [DONE]"),
        (b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n', "without data: [DONE]"),
        (b"data: 5\n\n", "none of a chat"),
        (b"data: null\n\n", "none of a chat"),
        (b"data: {nope\n\n", "none of a chat"),
        (b'data: {"error": ' + b"[" * 100_000 + b"\n\n", "none of a chat"),
        (b'data: {"choices": [3]}\n\n', "none of a chat"),
        (b'data: {"choices": [{"delta": {"content": [1]}}]}\n\n', "none of a chat"),
        (b'data: {"choices": [{"delta": {"content": "\\ud800"}}]}\n\n', "none of a chat"),
        (b'data: {"choices": [], "usage": "much"}\n\n', "none of a chat"),
        (b'data: {"error": "\\u001b[2J"}\n\n', "\ufffd[2J"),
        (b'data: {"choices": [{"delta": {"content": "fine"}}], "error": null}\n\ndata: [DONE]\n\n', ""),
    ],
)
def test_what_is_no_stream_of_a_chat_is_told(odd, stream, said, monkeypatch, capsys):
    odd.says({"/v1/chat/completions": stream})
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi"))
    assert chat.chat([odd.url]) == (1 if said else 0)
    told = capsys.readouterr()
    assert said in told.err and "\x1b" not in told.err + told.out
    assert said or told.out == "fine\n"


@pytest.mark.parametrize("status", [302, 500])
def test_the_words_of_a_status_are_no_commands_for_a_terminal(odd, status, monkeypatch, capsys):
    odd.says({}, status)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi"))
    assert chat.chat([odd.url]) == 1
    assert f"is answered {status} \ufffd[2J." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answers", "date", "wrong"),
    [
        ({}, "yesterday", "clock, one token"),
        ({}, "Mon, 99 Nov 2026 99:99:99 GMT", "clock, one token"),
        ({"/v1/engines": b'{"data": [1]}'}, None, "one token"),
        ({"/v1/engines": b'{"data": null}', "/ready": b'{"status": "\\ud800"}'}, None, "one token"),
        ({"/health": b'{"steps": 3}', "/ready": b'{"status": "\\u001b[2J\\nok"}'}, None, "one token"),
        ({"/version": b'{"version": ' + b"[" * 100_000}, None, "one token"),
    ],
)
def test_doctor_passes_over_what_it_cannot_read(odd, answers, date, wrong):
    bad = b'{"usage": {"completion_tokens": 1}, "timings": {"queue_ms": "long"}}'
    odd.says({**answers, "/v1/completions": bad}, date=date or "Mon, 30 Nov 2026 01:45:34 GMT")
    with contextlib.closing(Api(odd.url, seconds=30)) as api:
        verdict = verdict_of(examine_server(api, lambda: 1796003134.0))
    assert verdict.endswith(f"Something is wrong: {wrong}.")
    assert "\x1b" not in verdict and "model      m\ufffd[2J \n" in verdict


def test_text_that_is_no_utf8_is_asked_as_far_as_it_is(odd, monkeypatch, capsys):
    odd.says({"/v1/chat/completions": b"data: [DONE]\n\n"})
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe Hi"), encoding="utf-8"))
    assert chat.chat([odd.url]) == 0
