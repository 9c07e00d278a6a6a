"""`python -m engine.rank`: one of the processes that compute a model together, started by the first of them.

It brings its share up as the first rank does, call by call, and then does what that one tells it, until it says so or is gone.

Exit codes: 0 told to leave, or the first rank is gone; 3 the model cannot be served (the reason is logged); 1 a defect.
"""

import argparse
import logging
import os
import signal
import threading
from collections import deque
from pathlib import Path
from typing import NoReturn

import msgspec

from configs.model.read import read_config
from configs.model.source import ModelError, ModelSource
from configs.settings import Settings
from engine.device import step_limits
from engine.gpu.backend import USUAL_STEP
from engine.gpu.loader import GpuLoader, rank_device
from engine.gpu.worker import GpuWorker, PendingStep
from engine.ipc.failures import EXIT_MODEL, leave_at_once
from engine.tensor_parallel.commands import OrderReceiver, Record, Rehearse, Submit
from engine.tensor_parallel.group import orders, rendezvous
from engine.tensor_parallel.shards import Joined

log = logging.getLogger("headrace.engine")


def follow(worker: GpuWorker, orders: OrderReceiver) -> None:
    """Obey until told to leave. Results are waited for as the first rank does, and dropped: it has the same."""
    given: deque[PendingStep] = deque()
    while True:
        match orders.receive():
            case Submit(step=step):
                given.append(worker.submit(step))
                if len(given) == worker.depth:
                    given.popleft().result()
            case Record(bucket=bucket):
                worker.record(bucket)
            case Rehearse():
                worker.rehearse()
            case _:
                return


def serve(settings: Settings, source: ModelSource, rank: int, folder: Path) -> int:
    """Bring one rank up and let it follow. Returns the exit code."""
    receiver = OrderReceiver(orders(folder, rank))
    device = rank_device(rank)
    ranks = Joined(rank, settings.tensor_parallel, rendezvous(folder), device, timeout=settings.start_seconds)
    try:
        config = read_config(source)
        loader = GpuLoader(settings, source, config, step_limits(settings, USUAL_STEP), device, ranks=ranks)
        worker = loader.load(loader.plan())
        follow(worker, receiver)
    except ModelError as error:
        log.error("rank %d: %s", rank, error)
        return EXIT_MODEL
    except Exception:
        log.exception("rank %d fails", rank)
        return 1
    return 0


def end_with_the_first(folder: Path) -> None:
    """Its death closes our stdin. This process may be waiting for it on the device then, where no exception comes through."""
    while os.read(0, 4096):
        pass
    leave_at_once(0, folder)


def main() -> NoReturn:
    """Parse, start, follow."""
    parser = argparse.ArgumentParser(prog="python -m engine.rank", description="One rank of an engine (started by it).")
    parser.add_argument("--rank", type=int, required=True, help="which, from 1")
    parser.add_argument("--folder", required=True, type=Path, help="where the ranks meet and orders come from")
    parser.add_argument("--settings", required=True, help="settings, as JSON")
    parser.add_argument("--source", required=True, help="model source, as JSON")
    options = parser.parse_args()
    settings = Settings.model_validate_json(options.settings)
    source = msgspec.json.decode(options.source, type=ModelSource, dec_hook=lambda kind, value: kind(value))
    name = f"engine rank {options.rank}"
    logging.basicConfig(level=settings.log_level.upper(), format=f"%(asctime)s %(levelname)s {name}: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=end_with_the_first, args=(options.folder,), name="first-rank", daemon=True).start()
    leave_at_once(serve(settings, source, options.rank, options.folder))


if __name__ == "__main__":
    main()
