"""What dies, when, and when it is back."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

# Seconds until the server knows: a process that ends breaks its connection at once, a machine that is gone only falls silent
# (`server/engines/nodes/wire.py`).
NOTICED = {"replica": 0.0, "node": 4.0}
_FORM = re.compile(r"(replica|node):(\d+)@([\d.]+)(?:\+([\d.]+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One of them.

    Attributes:
        kind: `replica`, which leaves its node's keeper as it is, or `node`: all replicas there and the keeper.
        number: from 0.
        at: seconds after the beginning.
        recovery: seconds until it takes requests again, with nothing in its pool; None: it never does.
    """

    kind: str
    number: int
    at: float
    recovery: float | None = None

    def replicas(self, nodes: Sequence[int]) -> list[int]:
        """Which die, if replica i is on the node `nodes[i]`."""
        if self.kind == "replica":
            return [self.number] if self.number < len(nodes) else []
        return [replica for replica, node in enumerate(nodes) if node == self.number]

    @property
    def end(self) -> float:
        """When it is over."""
        return inf if self.recovery is None else self.at + self.recovery


def parse_failure(text: str) -> Failure:
    """`node:5@60+120`: node 5 dies after 60 s and is back 120 s later; without `+120` it never is. Raises ValueError."""
    found = _FORM.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError
        kind, number = found[1], int(found[2])
        at, recovery = float(found[3]), float(found[4]) if found[4] else None
        if inf in (at, recovery):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{text!r} is no failure; write node:NUMBER@SECONDS, replica:NUMBER@SECONDS, or either with +RECOVERY, "
            "as in node:5@60+120"
        ) from None
    if recovery is not None and recovery < NOTICED[kind]:
        raise ValueError(
            f"{text!r}: it takes {NOTICED[kind]:g} s until anybody knows that a {kind} is gone, so the recovery cannot be shorter"
        )
    return Failure(kind=kind, number=number, at=at, recovery=recovery)
