"""Child processes that end with their parent: the engine of a server, the ranks of an engine.

A child's stdin is a pipe that only its parent writes to, and never does: it reads end-of-file when the parent is gone, however
that ended.
"""

import argparse
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from configs.knob import knobs
from configs.model.source import ModelSource
from configs.settings import Settings


def spawn(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, descriptors: Sequence[int] = ()
) -> "subprocess.Popen[bytes]":
    """Start a child, which does not inherit the variables that hold secrets of the server.

    It has a session of its own: Ctrl-C reaches the first process of a server only, which then decides what becomes of open
    requests.

    Args:
        arguments: command line, the program first.
        environment: added to this process's.
        descriptors: of this process that the child has, too, under the same numbers.
    """
    return subprocess.Popen(
        arguments,
        stdin=subprocess.PIPE,
        env={**without_secrets(), **(environment or {})},
        cwd=working_folder(),
        start_new_session=True,
        pass_fds=descriptors,
    )


def without_secrets() -> dict[str, str]:
    """This process's variables, but for those that hold secrets of the server."""
    secrets = {knob.variable for knob in knobs().values() if knob.secret}
    return {name: value for name, value in os.environ.items() if name not in secrets}


def working_folder() -> str | None:
    """This process's own (None), unless it is gone: PyTorch's libraries do not load in such a one."""
    try:
        os.getcwd()
    except OSError:
        return "/"
    return None


def module_arguments(module: str, settings: Settings, source: ModelSource) -> list[str]:
    """The command line of a child that runs `module` with these settings. API keys stay out: a command line is public."""
    return [
        *(sys.executable, "-m", module),
        *("--settings", settings.for_engine()),
        *("--source", msgspec.json.encode(source, enc_hook=str).decode()),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `module_arguments` passes."""
    parser.add_argument("--settings", required=True, type=Settings.model_validate_json, help="settings, as JSON")
    parser.add_argument("--source", required=True, type=_source, help="model source, as JSON")


def _source(text: str) -> ModelSource:
    return msgspec.json.decode(text, type=ModelSource, dec_hook=lambda kind, value: kind(value))


def parent_gone(stdin: int) -> bool:
    """Whether the parent has ended. Blocks until `stdin` can be read: when the parent ends, or when somebody types."""
    return not os.read(stdin, 4096)


def watch_parent(stdin: int, on_end: Callable[[], object]) -> None:
    """Call `on_end` in a thread as soon as the parent has ended, whatever the other threads are doing."""

    def watch() -> None:
        while not parent_gone(stdin):
            pass
        on_end()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def socket_folder(endpoint: str) -> Path | None:
    """The folder of a socket in the file system, from its ZeroMQ address; None: it is not there."""
    return Path(endpoint.removeprefix("ipc://")).parent if endpoint.startswith("ipc://") else None
