"""Where a stream is broken, and what is kept of it."""

from random import Random

import pytest

from loadtest.client.breaks import Breaks, last_event
from loadtest.client.http1 import HttpExchange

EVENTS = [b'id: %d\ndata: {"text": "id: 9 %d"}\n\n' % (number, number) for number in range(1, 30)]
BODY = b": first\n\n" + b"".join(EVENTS[:2]) + b": waiting\n\n" + EVENTS[2]


@pytest.mark.parametrize("end", range(len(BODY) + 1))
def test_the_last_whole_event_with_an_id(end):
    whole = [number for number in (1, 2, 3) if BODY.find(b"id: %d\n" % number) + len(EVENTS[number - 1]) <= end]
    number = max(whole, default=0)
    kept = BODY.find(b"id: %d\n" % number) + len(EVENTS[number - 1]) if number else 0
    assert last_event(BODY, end) == (kept, number)


class Pool:
    """Answers with what is left, in pieces of any size."""

    def __init__(self, draw):
        self.draw = draw
        self.asked = []

    def open(self, exchange):
        self.asked.append(int(exchange.payload))
        exchange.answered(1.0, 204 if self.asked[-1] == len(EVENTS) else 200)

    def play(self, exchange):
        while True:
            rest, opened = b"".join(EVENTS[self.asked[-1] :]), len(self.asked)
            while rest and len(self.asked) == opened:
                size = self.draw.randint(1, 300)
                piece, rest = rest[:size], rest[size:]
                exchange.body += piece
                exchange.chunk_times.append(float(len(self.asked)))
                exchange.chunk_ends.append(len(exchange.body))
                exchange.arrived(exchange, len(piece))
            if len(self.asked) == opened:
                return


@pytest.mark.parametrize("seed", range(20))
def test_what_is_put_together_is_the_stream(seed):
    pool = Pool(Random(seed))
    breaks = Breaks(pool, lambda stream, number: b"%d" % number, most=4, seed=seed)
    exchange = HttpExchange(b"", 0.0, lambda ended: None, stream="s")
    exchange.answered(0.5, 200)
    pool.asked.append(0)
    breaks.watch(exchange, index=0)
    pool.play(exchange)
    assert bytes(exchange.body) == b"".join(EVENTS) and (exchange.status, exchange.headers) == (200, 0.5)
    assert breaks.made == len(pool.asked) - 1 <= 4
    assert list(exchange.chunk_ends) == sorted(set(exchange.chunk_ends)) and exchange.chunk_ends[-1] == len(
        exchange.body
    )
    assert list(exchange.chunk_times) == sorted(exchange.chunk_times)


def test_a_stream_that_cannot_go_on_shows_why():
    exchange = HttpExchange(b"", 0.0, lambda ended: None, resumed=True)
    exchange.status, exchange.body = 200, bytearray(EVENTS[0])
    exchange.answered(1.0, 404)
    assert (exchange.status, exchange.body) == (404, b"")
