"""How long a client may take and how many may come. Those of a head stand in `head.py`, those of a body's framing in `body.py`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Constants, but for tests and the number of connections.

    Attributes:
        connections: open in all; one address may have half of them.
        head_seconds: from a request's first byte, or from a new connection, to the end of its head.
        body_seconds: the same for its body, and one second more for each `body_rate` bytes that come; but never more than this
            from now, so that a client that sent fast may not then fall silent for longer.
        body_rate: bytes a second that any line to a server has.
        idle_seconds: between requests; more than the idle timeout of common proxies, so that they close first.
        stall_seconds: how long a client may take nothing of what was written to it.
        linger_seconds, linger_bytes: how long, and for how much, a client that still sends is listened to after its answer. Closing
            at once would reset the connection, and many clients would not see the answer.
        parting: connections beyond all limits that have been refused, and are listened to in that way; then the one that has been
            there longest is cut.
        tick_seconds: between two looks at all this.
    """

    connections: int = 4096
    head_seconds: float = 20.0
    body_seconds: float = 30.0
    body_rate: int = 16 * 1024
    idle_seconds: float = 75.0
    stall_seconds: float = 30.0
    linger_seconds: float = 5.0
    linger_bytes: int = 256 * 2**20
    parting: int = 32
    tick_seconds: float = 0.5

    @property
    def of_one_address(self) -> int:
        """Open connections of one address."""
        return max(1, self.connections // 2)
