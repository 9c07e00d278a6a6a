"""Rules that hold for every request between two calls of the scheduler."""

from collections.abc import Callable, Collection, Mapping

from scheduler.kv.block_pool import IntegrityError
from scheduler.types.request import Request, RequestState

_Rule = Callable[[Request, int], bool]  # of a request and the block size in tokens
_RULES: tuple[tuple[str, _Rule], ...] = (
    ("waiting requests hold nothing", lambda r, _: r.state is not RequestState.WAITING or not r.block_table),
    ("finished requests are not kept", lambda r, _: r.state is not RequestState.FINISHED),
    ("the table covers what is computed", lambda r, size: len(r.block_table) * size >= r.computed),
    ("computed never passes known", lambda r, _: 0 <= r.computed <= r.known),
    ("what was published was computed", lambda r, size: r.published * size <= r.computed),
    ("nothing is planned on drafts in flight", lambda r, _: not r.verifying or r.in_flight == 1),
)


def check_requests(
    requests: Mapping[str, Request],
    running: Mapping[str, Request],
    waiting: Collection[Request],
    block_size: int,
    open_steps: int,
) -> None:
    """Check each request against the rules, and its state against where it stands.

    Args:
        requests: all that have not finished.
        running: those that have blocks.
        waiting: the others.
        block_size: tokens of a block.
        open_steps: steps whose results may be outstanding, each with at most one token of a request, not counting accepted
            drafts.

    Raises:
        IntegrityError: naming the first contradiction.
    """
    for request in requests.values():
        for rule, holds in _RULES:
            if not holds(request, block_size):
                raise IntegrityError(f"{rule}: not so for {request}")
        if not 0 <= request.in_flight <= open_steps:
            raise IntegrityError(f"each of {open_steps} open steps has a token in flight at most: not so for {request}")
        if (request.request_id in running) != (request.state is RequestState.RUNNING):
            raise IntegrityError(f"states match the queue and the running set: not so for {request}")
    if len(requests) != len(running) + len(waiting):
        raise IntegrityError("a request is neither running nor waiting")
