"""`python -m engine.keeper`: the keeper of one server, started by the HTTP process before its engines. No torch.

Exit codes: 0 the server is gone; 1 a defect.
"""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys

from configs.settings import Settings
from engine.ipc.child import parent_gone
from engine.keeper.keeper import Keeper
from engine.kv_store.tiers import GIB


def main() -> int:
    """Parse, and answer until the server is gone."""
    parser = argparse.ArgumentParser(prog="python -m engine.keeper", description="Keeps the KV of several engines.")
    parser.add_argument("--settings", required=True, type=Settings.model_validate_json, help="settings, as JSON")
    parser.add_argument("--listener", required=True, type=int, help="descriptor of the socket that engines connect to")
    parser.add_argument("--slab", required=True, type=int, help="descriptor of the shared memory")
    options = parser.parse_args()
    settings: Settings = options.settings
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s keeper: %(message)s")
    # A service manager signals every process of the server; what engines save last must find a keeper.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    keeper = Keeper(options.slab, int(settings.kv_host_gib * GIB), settings.eviction)
    asyncio.run(serve(keeper, socket.socket(fileno=options.listener), sys.stdin.fileno()))
    return 0


async def serve(keeper: Keeper, listener: socket.socket, parent: int) -> None:
    """Answer until the parent is gone: until its end of `parent` closes."""
    gone = asyncio.Event()

    def heard() -> None:
        if parent_gone(parent):
            gone.set()

    os.set_blocking(parent, False)
    asyncio.get_running_loop().add_reader(parent, heard)
    await keeper.serve(listener)
    await gone.wait()


if __name__ == "__main__":
    sys.exit(main())
