"""Several times as many users as a trace has: stretches of the trace that began at different times, played at once.

What a trace's users share with each other, and how their requests bunch, stays as it is in each stretch; between stretches nothing
is shared. So a load grows with the number of replicas without time running faster, which would make a user's next question come
before the answer to the last one.
"""

from collections.abc import Iterator
from dataclasses import replace

from loadtest.workload.arrivals import ArrivalError
from loadtest.workload.plan import LoadShape, Plan, Planned, make_plan
from loadtest.workload.traces import Trace


def crowd(trace: Trace, load: LoadShape, times: int) -> Plan:
    """A plan with `times` stretches of the length of the window, which begin evenly spread over the rest of the trace.

    Raises:
        ArrivalError: the window has no end or reaches beyond the trace, arrivals are not the trace's own, or a stretch is empty.
    """
    if load.arrivals is not None or load.rate is not None or load.duration is not None:
        raise ArrivalError("a crowd keeps the trace's own times")
    begin, end = load.window or (0.0, float("inf"))
    last = trace.requests[-1].arrival
    if times > 1 and end > last:
        raise ArrivalError(
            f"a crowd needs a window that ends before {last:g} s, of which it plays one stretch for each part"
        )
    whole = replace(load, limit=None)
    requests: list[Planned] = []
    described: dict[str, object] | None = None
    problems: dict[str, None] = {}
    for part in range(times):
        start = begin + (last - end) * part / times
        shape = replace(whole, window=(start, start + end - begin), seed=load.seed + part) if part else whole
        plan = make_plan(trace, shape)
        described = described or plan.described
        problems |= dict.fromkeys(plan.problems)
        requests += _apart(trace, plan, part)
    requests.sort(key=lambda request: request.intended)
    requests = [replace(request, index=index) for index, request in enumerate(requests[: load.limit])]
    return Plan(requests=requests, described=(described or {}) | {"crowd": times}, problems=list(problems))


def _apart(trace: Trace, plan: Plan, part: int) -> Iterator[Planned]:
    """The requests of one stretch, with texts of their own."""
    blocks = 1 + max((block for request in trace.requests for block in request.blocks), default=0)
    for request in plan.requests:
        yield replace(
            request,
            session=request.session and f"{request.session} #{part}",
            blocks=tuple(block + part * blocks for block in request.blocks),
        )
