"""The first rank's view of the others: it starts them, tells them what to do, and does not outlive them.

One process a GPU. The first is the engine; it starts the rest, which find each other through a file in a private folder and do
what they are told (`engine.rank`). Ranks that have lost one of them can only wait for it, on the device, where nothing ends the
wait: so when one ends, all end, and the server starts a new engine.
"""

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from configs.model.source import ModelSource
from configs.settings import Settings
from engine.ipc.failures import EXIT_LOST, EXIT_MODEL, leave_at_once
from engine.ipc.private_folder import private_folder
from engine.tensor_parallel.commands import Leave, Order, OrderSender

log = logging.getLogger("headrace.engine")

_LEAVE_SECONDS = 2.0
_REASON_SECONDS = 5.0


class Followers:
    """Ranks 1 to `settings.tensor_parallel` - 1, started at once; they import and load while this process does.

    Args:
        settings: of the server.
        source: the model's files.

    Attributes:
        folder: of these ranks alone; whoever outlives the others removes it.
    """

    def __init__(self, settings: Settings, source: ModelSource) -> None:
        self.folder = private_folder("headrace-ranks-")
        others = range(1, settings.tensor_parallel)
        self._orders = OrderSender([orders(self.folder, rank) for rank in others])
        self._leaving = False
        common = rank_arguments(settings, source, self.folder)
        self._processes = [self._start(rank, [*common, "--rank", str(rank)]) for rank in others]

    def _start(self, rank: int, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        environment = os.environ | loopback()
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)  # stdin ends with this process
        threading.Thread(target=self._watch, args=(rank, process), name=f"rank-{rank}", daemon=True).start()
        return process

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        code = process.wait()
        if code == EXIT_MODEL:  # what is wrong with the model this rank is about to see, too, and can tell the server
            time.sleep(_REASON_SECONDS)
        if not self._leaving:
            log.critical("rank %d ended with exit code %d: so does this engine", rank, code)
            leave_at_once(EXIT_LOST, self.folder)  # the main thread may be waiting for that rank, for ever

    def tell(self, order: Order) -> None:
        """Have all of them do this after what they were told before."""
        self._orders.tell(order)

    def close(self) -> None:
        """Send them home and wait for that; who has not gone after two seconds is killed."""
        self._leaving = True
        self.tell(Leave())
        for process in self._processes:
            try:
                process.wait(_LEAVE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()
        self._orders.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def rank_arguments(settings: Settings, source: ModelSource, folder: Path) -> list[str]:
    """The command line of a rank, but for its number. API keys stay out: it is public."""
    return [
        *(sys.executable, "-m", "engine.rank"),
        *("--settings", settings.for_engine()),
        *("--source", msgspec.json.encode(source, enc_hook=str).decode()),
        *("--folder", str(folder)),
    ]


def rendezvous(folder: Path) -> str:
    """Where the ranks meet (`engine.tensor_parallel.shards.Joined`)."""
    return f"file://{folder}/meet"


def orders(folder: Path, rank: int) -> str:
    """ZeroMQ endpoint of a rank's orders."""
    return f"ipc://{folder}/{rank}"


def loopback() -> dict[str, str]:
    """Variables that keep the ranks' own sockets on this machine, unless somebody has set them."""
    names = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
    return {name: os.environ.get(name, "lo") for name in names}
