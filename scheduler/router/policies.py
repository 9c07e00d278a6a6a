"""The routing policies by their names."""

import logging

from scheduler.router.least_work import LeastWork
from scheduler.router.policy import Router
from scheduler.router.prefix_aware import PrefixAware
from scheduler.router.round_robin import RoundRobin

_log = logging.getLogger("headrace.router")

ROUTERS = ("round-robin", "least-work", "prefix-aware")
OLD_NAMES = {"least-loaded": "least-work"}  # accepted for one release


def make_router(name: str, *, decode_slo: float | None = None) -> Router:
    """The policy of this name, one of `ROUTERS` or of `OLD_NAMES`.

    Args:
        name: of the policy.
        decode_slo: seconds between tokens that `prefix-aware` keeps to.
    """
    if name in OLD_NAMES:
        _log.warning(
            "routing %s is called %s now; the old name will be gone with the next release", name, OLD_NAMES[name]
        )
        name = OLD_NAMES[name]
    if name == "round-robin":
        return RoundRobin()
    return LeastWork() if name == "least-work" else PrefixAware(decode_slo)
