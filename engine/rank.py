"""`python -m engine.rank`: a rank worker, one of the processes that compute a model together, started by the first of them.

It brings its shard up as the first rank does, call by call, and then runs that one's commands until it says stop or is gone.

Exit codes: 0 told to stop, or the first rank is gone; 3 the model cannot be served (the reason is logged); 1 a defect, or the
group broke.
"""

import argparse
import logging
import signal
import sys
from collections import deque
from pathlib import Path
from typing import NoReturn

from configs.model.source import ModelError, ModelSource
from configs.settings import Settings
from engine.device import step_limits
from engine.gpu.backend import USUAL_STEP
from engine.gpu.graph_policy import GraphShape
from engine.gpu.loader import GpuLoader, rank_device
from engine.gpu.worker import GpuWorker, PendingStep
from engine.ipc.child import add_arguments, watch_parent
from engine.ipc.failures import EXIT_MODEL, exit_at_once
from engine.ipc.log_lines import name_log_lines
from engine.ipc.share import own_share
from engine.models.registry import read_config
from engine.tensor_parallel.commands import RankCommandReceiver, Record, Submit, Warmup
from engine.tensor_parallel.group import command_endpoint, rendezvous
from engine.tensor_parallel.process_group import TorchProcessGroup

log = logging.getLogger("headrace.engine")


def follow(worker: GpuWorker, commands: RankCommandReceiver) -> None:
    """Run commands until told to stop. Results are waited for as the first rank does, and dropped: it has the same."""
    submitted: deque[PendingStep] = deque()
    while True:
        match commands.receive():
            case Submit(step=step):
                submitted.append(worker.submit(step))
                if len(submitted) == worker.depth:
                    submitted.popleft().result()
            case Record(kind=kind, rows=rows):
                worker.record(GraphShape(kind, rows))
            case Warmup():
                worker.warm_up()
            case _:
                return


def serve(settings: Settings, source: ModelSource, rank: int, folder: Path) -> None:
    """Bring one rank up and let it follow until it is told to stop.

    Raises:
        ModelError: the model cannot be served.
        ConnectionError: the other ranks did not come.
    """
    commands = RankCommandReceiver(command_endpoint(folder, rank))
    device = rank_device(rank)
    ranks = TorchProcessGroup(
        rank, settings.tensor_parallel, rendezvous(folder), device, timeout=settings.start_seconds
    )
    config = read_config(source)
    loader = GpuLoader(settings, source, config, step_limits(settings, USUAL_STEP), device, ranks=ranks)
    follow(loader.load(loader.plan()), commands)


def main() -> NoReturn:
    """Parse, start, follow."""
    parser = argparse.ArgumentParser(prog="python -m engine.rank", description="One rank of an engine (started by it).")
    parser.add_argument("--rank", type=int, required=True, help="its number, from 1")
    parser.add_argument("--folder", required=True, type=Path, help="where the ranks meet and commands come from")
    add_arguments(parser)
    options = parser.parse_args()
    share = own_share()
    engine = "engine" if share is None else share.engine
    name_log_lines(f"{engine} rank {options.rank}", options.settings.log_level, options.settings.log_format)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # The main thread may be waiting for the first rank on the device when that dies, where no exception reaches it.
    watch_parent(sys.stdin.fileno(), lambda: exit_at_once(0, options.folder))
    try:
        serve(options.settings, options.source, options.rank, options.folder)
    except ModelError as error:  # the first rank finds out the same, and ends the group in good order
        log.error("%s", error)
        exit_at_once(EXIT_MODEL)
    except Exception:
        log.exception("this rank fails")
        exit_at_once(1, options.folder)  # the first rank may be gone, which is as likely a cause as any
    exit_at_once(0)


if __name__ == "__main__":
    main()
