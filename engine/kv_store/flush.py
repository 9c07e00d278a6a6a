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
    began = clock()
    transfers.flush.begin()
    in_time = _write(transfers, worker, lambda: began + seconds - clock(), wait)
    worker.finish()
    _absorb(transfers, worker)
    if transfers.flush.target is not None:
        _tell(transfers, transfers.flush.target.name, clock() - began, in_time=in_time)


def _write(
    transfers: TransferPlanner, worker: TransferWorker, left: Callable[[], float], wait: Callable[[float], None]
) -> bool:
    """Write while seconds are left. Returns whether they sufficed."""
    plan, begun = transfers.flush, False
    while plan.busy and (seconds := left()) > 0:
        plan.plan()
        planned = transfers.take()
        if planned and not begun and plan.target is not None:  # what was under way before has arrived
            worker.expect_newest_first(plan.target.name)
            begun = True
        worker.start(planned)
        if plan.busy:
            wait(seconds)
            _absorb(transfers, worker)
    return not plan.busy


def _tell(transfers: TransferPlanner, tier: str, seconds: float, *, in_time: bool) -> None:
    plan = transfers.flush
    lost = plan.unsaved - plan.written
    text = f"stopping: wrote {plan.written} of {plan.unsaved} KV blocks that were nowhere else to tier {tier} in {seconds:.2f} s"
    if not lost:
        log.info("%s", text)
        return
    failed = transfers.tiers.get(tier) is None
    cause = "the tier failed" if failed else "it has no room for them" if in_time else "drain_seconds are over"
    log.warning("%s; %d are lost: %s", text, lost, cause)


def _absorb(transfers: TransferPlanner, worker: TransferWorker) -> None:
    for result in worker.finished():
        transfers.absorb(result)
