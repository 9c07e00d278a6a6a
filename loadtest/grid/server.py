"""A server that is started for one run and is gone after it, whatever happens to the run."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

_LOOK_SECONDS = 0.05
_ANSWER_SECONDS = 5.0
_SHOWN_LINES = 5  # of the log of one that has ended


class ServerFailed(Exception):
    """It did not start, or somebody else answers in its place. The message says what it said last."""


@contextmanager
def running(
    command: Sequence[str], target: str, log: Path, *, start_seconds: float, stop_seconds: float
) -> Iterator[int]:
    """A server, from when it generates at `target`. It has ended, with all of its process group, when the block is left.

    Args:
        command: program and arguments.
        target: base URL of its API, such as http://127.0.0.1:8000/v1.
        log: takes what it writes.
        start_seconds: that it may take until it answers.
        stop_seconds: that it may take to end after SIGTERM; then it is killed.

    Yields:
        Its process id.

    Raises:
        ServerFailed: it ended or did not answer, or something answers at `target` before it is started.
        OSError: the program cannot be started, or the log not be written.
    """
    if answers(target):
        raise ServerFailed(f"something answers at {target} already: it would be measured instead")
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
    try:
        _await(process, target, log, start_seconds)
        yield process.pid
    finally:
        _end(process, stop_seconds)


def answers(target: str) -> bool:
    """Whether a server answers there that has models."""
    try:
        return httpx.get(f"{target}/models", timeout=_ANSWER_SECONDS).status_code in (200, 401, 403)
    except httpx.HTTPError:
        return False


def ready(target: str) -> bool:
    """Whether a server there generates: some list their models while they load them, and answer 503 to whatever else is asked."""
    try:
        listed = httpx.get(f"{target}/models", timeout=_ANSWER_SECONDS)
        if listed.status_code != 200:
            return listed.status_code in (401, 403)
        body = {"model": listed.json()["data"][0]["id"], "prompt": "a", "max_tokens": 1}
        return httpx.post(f"{target}/completions", json=body, timeout=_ANSWER_SECONDS).status_code != 503
    except httpx.HTTPError:
        return False
    except (ValueError, LookupError, TypeError):  # a replay says what is wrong with its list
        return True


def _await(process: "subprocess.Popen[bytes]", target: str, log: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not ready(target):
        if (status := process.poll()) is not None:
            raise ServerFailed(f"it ended with status {status}: {_last_lines(log)}")
        if time.monotonic() > until:
            raise ServerFailed(f"nothing answered at {target} within {seconds:g} s: {_last_lines(log)}")
        time.sleep(_LOOK_SECONDS)
    if process.poll() is not None:
        raise ServerFailed(f"it ended, and something else answers at {target}")


def _last_lines(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " | ".join(lines[-_SHOWN_LINES:]) or "it said nothing"


def _end(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """End the process group: kindly at first. A further Ctrl-C meanwhile kills it at once."""
    try:
        _tell(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    finally:
        _tell(process, signal.SIGKILL)  # what is left of the group
        process.wait()


def _tell(process: "subprocess.Popen[bytes]", what: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, what)
