"""`python -m engine`: one engine process, started by the HTTP process, which it talks to over two ZeroMQ endpoints.

Exit codes: 0 told to stop or the parent is gone; 3 the model cannot be served (a `Failed` event says why); 4 the device or a
rank that computes with this one is lost; 1 a defect.
"""

import argparse
import logging
import signal
import sys
import threading
import time
from functools import partial
from typing import NoReturn

from configs.model.source import ModelError
from configs.settings import Settings
from engine.ipc.channel import Channel, ParentGone
from engine.ipc.child import add_arguments, socket_folder, watch_parent
from engine.ipc.curve import read_keys
from engine.ipc.failures import EXIT_LOST, EXIT_MODEL, DeviceLost, exit_at_once
from engine.ipc.keeper_address import decode_address
from engine.ipc.log_lines import name_log_lines
from engine.ipc.long_lived import keep_for_life
from engine.ipc.peer_list import read_pass
from engine.ipc.share import Share, decode_share
from engine.keeper.tiers import kept_tiers
from engine.kv_store.tiers import tiers_of
from engine.start import Starter
from scheduler.types.messages import Failed

log = logging.getLogger("headrace.engine")

LAST_SECONDS = 30.0  # for the step that runs when the HTTP process has ended


def main() -> NoReturn:
    """Parse, start, serve."""
    parser = argparse.ArgumentParser(
        prog="python -m engine", description="One headrace engine (started by the server)."
    )
    parser.add_argument("--commands", required=True, help="ZeroMQ endpoint to pull commands from")
    parser.add_argument("--events", required=True, help="ZeroMQ endpoint to push events to")
    parser.add_argument("--share", type=decode_share, help="its part of the machine, as JSON, if it is one of several")
    parser.add_argument("--keeper", type=decode_address, help="where the keeper of shared KV tiers is, as JSON")
    parser.add_argument(
        "--keys", type=read_keys, help="descriptor of a pipe with the keys of a wire to another machine"
    )
    parser.add_argument(
        "--peers", type=read_pass, help="descriptor of a pipe that says where other machines' keepers are"
    )
    add_arguments(parser)
    options = parser.parse_args()
    settings: Settings = options.settings
    share: Share | None = options.share
    name = "engine" if share is None else share.engine
    name_log_lines(name, settings.log_level, settings.log_format)
    if share is not None:
        share.take()
    # A service manager signals every process of the server; open requests are drained only if the engine ends last.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stdin = sys.stdin.fileno()
    channel = Channel(options.commands, options.events, parent=stdin, keys=options.keys)
    tiers = tiers_of if options.keeper is None else partial(kept_tiers, address=options.keeper, peers=options.peers)
    starter = Starter(settings, options.source, channel, tiers=tiers)
    started = threading.Event()

    def parent_ended() -> None:
        if started.is_set():  # then the loop sees it too and ends in good order, unless a step or a transfer hangs
            time.sleep(LAST_SECONDS)
        exit_at_once(0, starter.folder, socket_folder(options.commands))

    watch_parent(stdin, parent_ended)
    code = serve(starter, channel, started)
    exit_at_once(code)  # all is closed; what Python and torch would take apart takes seconds


def serve(starter: Starter, channel: Channel, started: threading.Event) -> int:
    """Start an engine and run it to its end. Sets `started` in between. Returns the exit code."""
    try:
        loop, ready = starter.start()
        keep_for_life()
        started.set()
        channel.send(ready)
        loop.run()
    except ModelError as error:
        channel.send(Failed(error=str(error)))
        return EXIT_MODEL
    except ParentGone:
        return 0
    except DeviceLost as error:
        log.critical("the device is lost: %s", error)
        channel.close()
        exit_at_once(EXIT_LOST, starter.folder)
    finally:
        starter.close()
        channel.close()
    return 0


if __name__ == "__main__":
    main()
