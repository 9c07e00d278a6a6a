"""`headrace serve` with stub engines: `python server/bench/stub_server.py PAUSE FLAGS...`, the tree to be measured on the path.

The variable `LOOP_LAG` names a file for the lags of its event loop; without it nothing is measured there.
"""

import os
import sys
from pathlib import Path

from server import cli
from server.engines import commands


def main() -> None:
    """Serve until SIGTERM."""
    pause, *flags = sys.argv[1:]
    if path := os.environ.get("LOOP_LAG"):
        import uvloop

        from server.bench.loop_lag import LoopLag

        uvloop.new_event_loop = LoopLag(Path(path)).watching(uvloop.new_event_loop)  # type: ignore[assignment]
    stub = [sys.executable, str(Path(__file__).with_name("stub_engine.py")), "--pause", pause]
    commands.module_arguments = lambda *_: stub  # type: ignore[attr-defined]  # in place of the engine's
    sys.argv = ["headrace", "serve", *flags]
    cli.main()


if __name__ == "__main__":
    main()
