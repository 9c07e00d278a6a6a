"""`python -m engine.keeper`: the keeper of one server, started by the HTTP process before its engines. No torch.

On its stdin it is told when to stop, by the seconds that it may still write to the disk; when that closes, the server is gone.

Exit codes: 0 told to stop, or the server is gone; 1 a defect.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from configs.settings import Settings
from engine.ipc.log_lines import configure_lines
from engine.keeper.budget import KeeperBudget
from engine.keeper.keeper import Keeper
from engine.keeper.session import serve
from engine.kv_store.tiers import GIB
from scheduler.types.messages import HEARTBEAT_SECONDS

if TYPE_CHECKING:
    from engine.keeper.peers.door import PeerDoor


def main() -> int:
    """Parse, and answer until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m engine.keeper", description="Keeps the KV of several engines.")
    parser.add_argument("--settings", required=True, type=Settings.model_validate_json, help="settings, as JSON")
    parser.add_argument("--listener", required=True, type=int, help="descriptor of the socket that engines connect to")
    parser.add_argument("--slab", required=True, type=int, help="descriptor of the shared memory")
    parser.add_argument(
        "--beats", type=int, help="descriptor to write to every second, so that it is known to be alive"
    )
    parser.add_argument("--peers", help="descriptor of a pipe that says who may come from other machines")
    parser.add_argument("--door", type=int, help="descriptor of the socket to which these come")
    options = parser.parse_args()
    settings: Settings = options.settings
    text = "%(asctime)s %(levelname)s keeper: %(message)s"
    configure_lines(settings.log_level, settings.log_format, "keeper", text)
    # A service manager signals every process of the server; what engines save last must find a keeper.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    listener = socket.socket(fileno=options.listener)
    opened = no_door if options.peers is None else partial(door_of, peers=options.peers, listener=options.door)
    asyncio.run(keep(options.slab, settings, listener, sys.stdin.fileno(), options.beats, opened))
    return 0


def no_door(keeper: Keeper) -> "PeerDoor | None":
    """There are no other machines."""
    return None


def door_of(keeper: Keeper, peers: str, listener: int) -> "PeerDoor | None":
    """Where engines of other machines come in.

    Args:
        keeper: whose contents they read.
        peers: descriptor of a pipe that says who they are.
        listener: descriptor of the socket to which they come.
    """
    from engine.ipc.peer_list import read_pass
    from engine.keeper.peers.door import PeerDoor

    return PeerDoor(keeper, read_pass(peers), listener)


async def beat(descriptor: int) -> None:
    """Show that the loop goes on, until cancelled."""
    os.set_blocking(descriptor, False)
    while True:
        with contextlib.suppress(OSError):  # nobody reads, or not yet
            os.write(descriptor, b".")
        await asyncio.sleep(HEARTBEAT_SECONDS)


async def keep(  # noqa: PLR0917 - as its command line has them
    slab: int,
    settings: Settings,
    listener: socket.socket,
    stdin: int,
    beats: int | None,
    opened: "Callable[[Keeper], PeerDoor | None]" = no_door,
) -> None:
    """Answer until told to stop, then write what is left to write; end at once if `stdin` closes."""
    folder = None if settings.kv_disk_path is None else Path(settings.kv_disk_path)
    budget = KeeperBudget(
        slab=int(settings.kv_host_gib * GIB),
        folder=folder,
        disk=int(settings.kv_disk_gib * GIB),
        engines=settings.engines,
    )
    keeper = Keeper(slab, budget, settings.eviction)
    gone, told = asyncio.Event(), asyncio.get_running_loop().create_future()

    def heard() -> None:
        line = os.read(stdin, 4096)
        if not line:
            gone.set()
            asyncio.get_running_loop().remove_reader(stdin)
        elif not told.done():
            told.set_result(float(line))

    asyncio.get_running_loop().add_reader(stdin, heard)
    beating = None if beats is None else asyncio.ensure_future(beat(beats))
    server = await serve(keeper, listener)
    door = opened(keeper)
    gone_task = asyncio.ensure_future(gone.wait())
    await asyncio.wait({gone_task, told}, return_when=asyncio.FIRST_COMPLETED)
    if told.done() and not gone.is_set():
        server.close()
        flush = asyncio.ensure_future(keeper.flush(told.result()))
        await asyncio.wait({gone_task, flush}, return_when=asyncio.FIRST_COMPLETED)
    gone_task.cancel()
    if beating is not None:
        beating.cancel()
    if door is not None:
        await door.close()
    keeper.close()


if __name__ == "__main__":
    sys.exit(main())
