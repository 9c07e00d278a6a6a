"""The servers: how each is started, and what it took until it answered."""

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtest.grid.server import running

START_SECONDS, STOP_SECONDS = 600.0, 20.0
OURS = "headrace"
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Server:
    """A server by its name.

    Attributes:
        command: its words; `{model}` and `{port}` in them stand for those of a turn.
        needs: a file that is there if it is installed, if that can be told.
    """

    name: str
    command: tuple[str, ...]
    needs: Path | None = None

    def words(self, model: str, port: int) -> list[str]:
        """The command of a turn."""
        return [word.replace("{model}", model).replace("{port}", str(port)) for word in self.command]


@dataclass(frozen=True, slots=True)
class Turn:
    """A server that answers: seconds from its start to its first answer, and its first process."""

    target: str
    ready: float
    pid: int

    def peak_bytes(self) -> int:
        """The most memory that its processes have held, each at its own time; pages of a mapped file count in each."""
        processes = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        return sum(_peak(each.pid) for each in processes)


def _peak(pid: int) -> int:
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0  # it has ended since


def ours(flags: str) -> Server:
    """The server of this environment with these flags, as a shell would split them."""
    command = (str(Path(sys.executable).with_name("headrace")), "serve", "{model}", "--port", "{port}")
    return Server(OURS, (*command, *shlex.split(flags)))


def known(folder: Path) -> dict[str, Server]:
    """Servers of others by name, as `make peers` installs them in `folder`."""
    python, node_modules = folder / "bin" / "python", folder / "node_modules"
    library = node_modules / "node-llama-cpp" / "dist" / "index.js"
    openvino = (str(python), str(_HERE / "openvino_server.py"), "{model}", "{port}")
    llama_cpp = ("node", str(_HERE / "llama_cpp.mjs"), str(library.resolve()), "{model}", "{port}")
    return {"openvino": Server("openvino", openvino, python), "llama.cpp": Server("llama.cpp", llama_cpp, library)}


def named(word: str, folder: Path) -> Server:
    """A server that `known` knows, or `NAME=COMMAND`.

    Raises:
        ValueError: it is neither, it is not installed, or its command does not say where the port goes.
    """
    name, given, command = word.partition("=")
    if given:
        if "{port}" not in command or not name or name == OURS:
            raise ValueError(f"{word!r}: NAME=COMMAND with {{port}}, and {{model}} if it takes one; {OURS} is ours")
        return Server(name, tuple(shlex.split(command)))
    servers = known(folder)
    if name not in servers:
        raise ValueError(f"{name!r} is none of {', '.join(servers)}, and no NAME=COMMAND")
    needs = servers[name].needs
    if needs is not None and not needs.exists():
        raise ValueError(f"{name} is not installed in {folder}: `make peers` does it")
    return servers[name]


@contextmanager
def turn(server: Server, model: str, port: int, log: Path) -> Iterator[Turn]:
    """The server alone on the machine as far as we are concerned; it has ended when the block is left.

    Raises:
        ServerFailed: it does not start, or something answers at the port already.
        OSError: its program is not there.
    """
    target = f"http://127.0.0.1:{port}/v1"
    began = time.monotonic()
    words = server.words(model, port)
    with running(words, target, log, start_seconds=START_SECONDS, stop_seconds=STOP_SECONDS) as pid:
        yield Turn(target, time.monotonic() - began, pid)
