"""`headrace chat` beside a real server: in a pseudo-terminal, where keys are pressed, and through a pipe."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import time

import pytest

from server.client.api import Api, key_of
from server.client.chat import chat
from tests.e2e.server_process import HEADRACE

pytestmark = pytest.mark.processes

SECONDS = 60


class Terminal:
    """The command in a pseudo-terminal of its own. `shown` is what it printed since the last look."""

    def __init__(self, folder, *arguments: str) -> None:
        self.shown = ""
        own, theirs = pty.openpty()
        self._own = own
        self.process = subprocess.Popen(
            [HEADRACE, "chat", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "XDG_STATE_HOME": str(folder), "TERM": "dumb", "INPUTRC": "/dev/null"},
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def wait_for(self, pattern: str) -> str:
        """What was printed up to the end of the pattern, which is taken away."""
        deadline = time.monotonic() + SECONDS
        while (match := re.search(pattern, self.shown, re.DOTALL)) is None:
            assert time.monotonic() < deadline, f"{pattern!r} was not printed; what was: {self.shown!r}"
            if select.select([self._own], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    self.shown += os.read(self._own, 65536).decode(errors="replace")
        taken, self.shown = self.shown[: match.end()], self.shown[match.end() :]
        return taken

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        try:
            return self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            os.close(self._own)


def test_a_conversation_in_a_terminal(server, tmp_path):
    terminal = Terminal(tmp_path, server.url, "--temperature", "0", "--max-tokens", "600")
    try:
        assert server.url in terminal.wait_for(r"/help lists.*?> ")
        terminal.type("/help\n")
        assert "/reset" in terminal.wait_for(r"Ctrl-C ends an answer.*?> ")
        terminal.type("/system You are a poet.\n")
        terminal.wait_for(r"The model is told: You are a poet\..*?> ")
        terminal.type("Tell a very long story\\\nabout a river.\n")
        terminal.wait_for(r"about a river\.\r\n.{20,}")  # it streams: there is some of it while the rest is computed
        terminal.interrupt()
        terminal.wait_for(r"\[stopped\].*?> ")
        metrics = server.wait_idle()
        assert metrics['headrace_sequences_finished_total{reason="abort"}'] >= 1
        terminal.type("/nonsense\n")
        terminal.wait_for(r"There is no /nonsense.*?> ")
        terminal.type("/reset\n")
        terminal.wait_for(r"forgotten.*?> ")
        terminal.interrupt()
        terminal.wait_for(r"/quit or Ctrl-D leaves.*?> ")
        terminal.type("/quit\n")
    finally:
        code = terminal.end()
    assert code == 0
    lines = (tmp_path / "headrace" / "chat_history").read_text()
    assert "Tell a very long story" in lines and "/system You are a poet." in lines


def test_control_d_leaves_and_figures_stand_behind_an_answer(server, tmp_path):
    terminal = Terminal(tmp_path, server.url, "--max-tokens", "3", "--temperature", "0")
    try:
        terminal.wait_for("> ")
        terminal.type("Hi\n")
        terminal.wait_for(r"tokens in \(\d+ cached\), 3 out.*?> ")
        terminal.type("And again?\n")  # with the first turn before it, which is cached
        told = terminal.wait_for(r"tokens in \(\d+ cached\), 3 out.*?> ")
        assert int(re.search(r"(\d+) tokens in", told)[1]) > 40
        terminal.type("\x04")
    finally:
        code = terminal.end()
    assert code == 0


def piped(text: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.endswith("API_KEY")} | environ
    return subprocess.run(
        [HEADRACE, "chat", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=env,
        check=False,
    )


def test_through_a_pipe_stdin_is_one_message_and_stdout_has_its_answer_alone(server):
    done = piped("The capital of\nFrance is", f"{server.url}/v1", "--temperature", "0", "--max-tokens", "4")
    body = {
        "model": "SmolLM2-135M-Instruct",
        "messages": [{"role": "user", "content": "The capital of\nFrance is"}],
        "temperature": 0,
        "max_tokens": 4,
    }
    with contextlib.closing(Api(server.url)) as api:
        answer = api.request("POST", "/v1/chat/completions", body).json()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == answer["choices"][0]["message"]["content"] + "\n"


def test_a_refusal_through_a_pipe_is_a_sentence(server):
    done = piped("hi", server.url, "--temperature", "99")
    assert done.returncode == 1 and done.stdout == ""
    assert "temperature" in done.stderr and "99" in done.stderr
    assert piped("", server.url).returncode == 2


def test_nobody_answers(capsys):
    assert chat(["http://127.0.0.1:9"]) == 1
    said = capsys.readouterr().err
    assert "Nobody answers at http://127.0.0.1:9 (Connection refused)" in said and "headrace serve" in said
    said = piped("hi", "--uds", "/nowhere").stderr
    assert "Nobody answers at the Unix socket /nowhere (No such file or directory)" in said


@pytest.mark.parametrize(
    ("given", "environ", "key"),
    [
        (None, {}, None), ("a", {"HEADRACE_API_KEY": "b"}, "a"), (None, {"OPENAI_API_KEY": "o"}, "o"),
        (None, {"HEADRACE_API_KEY": "b, c", "OPENAI_API_KEY": "o"}, "b"), (None, {"HEADRACE_API_KEY": ""}, None),
    ],
)  # fmt: skip
def test_where_the_key_is_from(given, environ, key):
    assert key_of(given, environ) == key
