"""Before an orderly stop: what would end with this process is written to a tier that survives it, while there is time."""

import logging
import time
from collections.abc import Callable

from engine.kv_store.transfer import TransferWorker
from scheduler.kv.tiers.transfer_planner import TransferPlanner

log = logging.getLogger("headrace.engine")


def flush(
    transfers: TransferPlanner,
    worker: TransferWorker,
    seconds: float,
    wait: Callable[[float], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Write what no surviving tier has yet, and say in one line how much was written and lost. Nothing if all is there.

    Args:
        transfers: the books. Nothing else may plan transfers or take blocks from now on.
        worker: carries the blocks; transfers nothing more afterwards.
        seconds: how long it may take, but for the transfers that are under way when the time is over.
        wait: sleeps until a transfer has ended, at most as many seconds as it is given.
        clock: seconds, monotonic.
    """
    plan, began = transfers.flush, clock()
    plan.begin()
    target = plan.target
    while plan.busy and (left := began + seconds - clock()) > 0:
        plan.plan()
        worker.start(transfers.take())
        if plan.busy:
            wait(left)
            _absorb(transfers, worker)
    in_time = not plan.busy
    worker.finish()
    _absorb(transfers, worker)
    if target is None:
        return
    figures = f"{plan.written} of {plan.unsaved} KV blocks that were nowhere else"
    text = f"stopping: wrote {figures} to tier {target.name} in {clock() - began:.2f} s"
    lost = plan.unsaved - plan.written
    if not lost:
        log.info("%s", text)
        return
    lost_tier = transfers.tiers.get(target.name) is None
    cause = "the tier failed" if lost_tier else "it has no room for them" if in_time else "the drain time is over"
    log.warning("%s; %d are lost: %s", text, lost, cause)


def _absorb(transfers: TransferPlanner, worker: TransferWorker) -> None:
    for result in worker.finished():
        transfers.absorb(result)
