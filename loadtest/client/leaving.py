"""Clients that leave before their answer is complete, as people do who close a tab: the server should stop computing for them."""

import asyncio
from collections.abc import Callable
from random import Random

from loadtest.client.http1 import HttpExchange

Leave = Callable[[HttpExchange], None]


class Leaving:
    """Who leaves, and when.

    Args:
        share: of the requests, from 0 to 1.
        after: seconds from sending a request; None: at a random place of its answer.
        seed: of the draws.
    """

    def __init__(self, share: float, after: float | None, seed: int) -> None:
        self._share = share
        self._after = after
        self._seed = seed

    def watch(self, exchange: HttpExchange, index: int, tokens: int, leave: Leave) -> None:
        """See to it that the client of request `index`, whose answer has so many `tokens`, leaves if it is one who does."""
        rng = Random(f"leaves {self._seed} {index}")
        if rng.random() >= self._share:
            return
        if self._after is not None:
            asyncio.get_running_loop().call_later(self._after, leave, exchange)
            return
        pieces = rng.randint(1, max(1, tokens - 1))

        def arrived(exchange: HttpExchange, _size: int) -> None:
            nonlocal pieces
            pieces -= 1
            if pieces == 0:
                leave(exchange)

        exchange.arrived = arrived
