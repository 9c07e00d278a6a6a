"""`python -m server.fronts`: an HTTP process, started by a server that has several."""

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence

import uvloop

from configs.settings import Settings
from engine.ipc.child import watch_parent
from engine.ipc.log_lines import configure_lines
from engine.ipc.long_lived import keep_for_life
from server.fronts.http_process import HttpProcess


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until the server says so, or is gone."""
    # A service manager signals every process of the server; open requests are drained only if their connections end last.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, type=Settings.model_validate_json, help="settings, as JSON")
    parser.add_argument("--name", required=True, help="in the log")
    parser.add_argument("--link", required=True, type=int, help="descriptor of the socket to the server")
    parser.add_argument("--door", required=True, type=int, help="descriptor of the socket from which connections come")
    options = parser.parse_args(argv)
    settings: Settings = options.settings
    text = f"%(asctime)s %(levelname)s %(name)s: {options.name}: %(message)s"
    configure_lines(settings.log_level, settings.log_format, options.name, text)
    watch_parent(sys.stdin.fileno(), lambda: os._exit(1))
    link, door = (socket.socket(fileno=number) for number in (options.link, options.door))

    keep_for_life()

    async def run() -> None:
        await HttpProcess(settings, link, door).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


if __name__ == "__main__":
    main()
