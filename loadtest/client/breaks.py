"""Breaks the connections of streams at random and goes on with them where they broke, as docs/sse.md has it (resumable streams).

What came last is not known to a client whose network fails, so some of what has come is thrown away, too. What is put together in
the end is judged like any stream: its events must have all their ids, each once.
"""

from collections.abc import Callable
from random import Random
from typing import Protocol

from loadtest.client.http1 import HttpExchange

_PIECES = 16  # a connection lives for so many of an answer's pieces at most
_BLANK_LINE = b"\n\n"


class Opener(Protocol):
    """As much of a connection pool as is needed here."""

    def open(self, exchange: HttpExchange) -> None:
        """Send the exchange's payload on a new connection."""


class Breaks:
    """Those of one run.

    Args:
        pool: opens the connections that go on.
        request: the bytes of the request that goes on with a stream (its id) behind an event (its number).
        most: breaks of one stream.
        seed: of the places.
    """

    def __init__(self, pool: Opener, request: Callable[[str, int], bytes], most: int, seed: int) -> None:
        self.made = 0
        self._pool = pool
        self._request = request
        self._most = most
        self._seed = seed

    def watch(self, exchange: HttpExchange, index: int) -> None:
        """Break this exchange, the run's request `index`, while its answer comes."""
        rng = Random(f"breaks {self._seed} {index}")
        left, pieces = self._most, rng.randint(1, _PIECES)

        def arrived(exchange: HttpExchange, size: int) -> None:
            nonlocal left, pieces
            pieces -= 1
            if pieces > 0 or left == 0 or exchange.stream is None:
                return
            left, pieces = left - 1, rng.randint(1, _PIECES)
            self._break(exchange, exchange.stream, lost=rng.randint(0, size))

        exchange.arrived = arrived

    def _break(self, exchange: HttpExchange, stream: str, lost: int) -> None:
        """`lost`: bytes at the end that are thrown away, beside those of an event that is not whole."""
        self.made += 1
        end, number = last_event(bytes(exchange.body), len(exchange.body) - lost)
        exchange.cut_back(end)
        if exchange.connection is not None:
            exchange.connection.drop()
        exchange.connection, exchange.resumed = None, True
        exchange.payload = self._request(stream, number)
        self._pool.open(exchange)


def last_event(body: bytes, end: int) -> tuple[int, int]:
    """Where the last event with an id ends that ends within `body[:end]`, and its id; 0 and 0 if there is none."""
    while (end := body.rfind(_BLANK_LINE, 0, end)) >= 0:
        start = body.rfind(_BLANK_LINE, 0, end)
        event = body[start + 2 if start >= 0 else 0 : end]
        if event.startswith(b"id: "):
            return end + 2, int(event[4:].partition(b"\n")[0])
    return 0, 0
