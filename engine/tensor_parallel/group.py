"""The rank group as the first rank sees it: it starts the others, sends them commands, and does not outlive them.

One process a GPU. The first is the engine; it starts the rest (`engine.rank`), which meet it through a file in a private folder.
When a rank is lost, the others can only wait for it, on the device, where nothing ends the wait: so when one ends, all end, and
the server starts a new engine.

The folder is the first rank's. It is removed once, by whichever rank knows that the group has ended: the first, after the others
have ended or when one of them is lost; another rank only when the first is gone or it has itself failed. The folder is moved aside
before its contents are deleted (`remove_folder`), so a rank that is still joining finds no folder, and never meets in a new file.
"""

import logging
import os
import subprocess
import threading
import time
from pathlib import Path

from configs.model.source import ModelSource
from configs.settings import Settings
from engine.ipc.child import module_arguments, spawn
from engine.ipc.failures import EXIT_LOST, EXIT_MODEL, exit_at_once
from engine.ipc.private_folder import private_folder, remove_folder
from engine.tensor_parallel.commands import RankCommand, RankCommandSender, Stop

log = logging.getLogger("headrace.engine")

_STOP_SECONDS = 2.0
_REASON_SECONDS = 5.0


class RankGroup:
    """Ranks 1 to `settings.tensor_parallel` - 1, started at once; they import and load while this process does.

    Args:
        settings: of the server.
        source: the model's files.

    Attributes:
        folder: where the ranks meet and commands come from.
    """

    def __init__(self, settings: Settings, source: ModelSource) -> None:
        self.folder = private_folder("headrace-ranks-")
        others = range(1, settings.tensor_parallel)
        self._commands = RankCommandSender([command_endpoint(self.folder, rank) for rank in others])
        self._stopping = False
        self._processes = [self._start(rank, rank_arguments(settings, source, self.folder, rank)) for rank in others]

    def _start(self, rank: int, arguments: list[str]) -> "subprocess.Popen[bytes]":
        process = spawn(arguments, loopback())
        threading.Thread(target=self._watch, args=(rank, process), name=f"rank-{rank}", daemon=True).start()
        return process

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        code = process.wait()
        if code == EXIT_MODEL:  # this rank is about to fail on the same model, and can tell the server why
            time.sleep(_REASON_SECONDS)
        if not self._stopping:
            log.critical("rank %d ended with exit code %d: this engine ends too", rank, code)
            exit_at_once(EXIT_LOST, self.folder)  # the main thread may be waiting for that rank, forever

    def send(self, command: RankCommand) -> None:
        """Queue a command for all other ranks; does not wait."""
        self._commands.send(command)

    def close(self) -> None:
        """Stop the other ranks; one that has not ended after two seconds is killed."""
        self._stopping = True
        self.send(Stop())
        for process in self._processes:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()
        self._commands.close()
        remove_folder(self.folder)


def rank_arguments(settings: Settings, source: ModelSource, folder: Path, rank: int) -> list[str]:
    """The command line of a rank."""
    return [*module_arguments("engine.rank", settings, source), "--folder", str(folder), "--rank", str(rank)]


def rendezvous(folder: Path) -> str:
    """Where the ranks meet, as `torch.distributed` takes it."""
    return f"file://{folder}/meet"


def command_endpoint(folder: Path, rank: int) -> str:
    """ZeroMQ address of a rank's commands."""
    return f"ipc://{folder}/{rank}"


def loopback() -> dict[str, str]:
    """Variables that keep the ranks' own sockets on this machine, unless they are set already."""
    names = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
    return {name: os.environ.get(name, "lo") for name in names}
