"""Who leaves, and when: drawn by seed and request alone, whatever else happens."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from loadtest.client.leaving import Leaving


class Exchange:
    """What `Leaving` sees of a request under way."""

    arrived = None


def pieces_until(leaving: Leaving, index: int, tokens: int) -> int | None:
    """How many pieces of an answer come before its client leaves; None: it stays to the end."""
    exchange, left = Exchange(), []
    leaving.watch(exchange, index, tokens, left.append)
    for piece in range(1, tokens + 3) if exchange.arrived else ():
        exchange.arrived(exchange, 10)
        if left:
            exchange.arrived(exchange, 10)
            assert left == [exchange], "nobody leaves twice"
            return piece
    return None


@given(st.integers(0, 9), st.integers(1, 300))
def test_a_client_leaves_once_and_before_the_last_token(seed, tokens):
    everybody = Leaving(1.0, None, seed)
    found = [pieces_until(everybody, index, tokens) for index in range(20)]
    assert all(piece is not None and 1 <= piece <= max(1, tokens - 1) for piece in found)
    assert found == [pieces_until(everybody, index, tokens) for index in range(20)], "a seed says where"
    assert tokens < 30 or len(set(found)) > 5


def test_about_the_share_leaves_and_who_leaves_at_a_smaller_one_leaves_at_a_larger():
    leavers = {
        share: {index for index in range(2000) if pieces_until(Leaving(share, None, 3), index, 9)}
        for share in (0.0, 0.1, 0.5, 1.0)
    }
    assert leavers[0.0] < leavers[0.1] < leavers[0.5] < leavers[1.0]
    assert not leavers[0.0] and 150 < len(leavers[0.1]) < 250 and 900 < len(leavers[0.5]) < 1100
    assert leavers[0.5] != {index for index in range(2000) if pieces_until(Leaving(0.5, None, 4), index, 9)}


def test_after_a_time_it_is_the_clock_that_decides(monkeypatch):
    called, exchange = [], Exchange()

    async def watch():
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", lambda *call: called.append(call), raising=False)
        Leaving(1.0, 2.5, 0).watch(exchange, 0, 100, leave)

    def leave(exchange):
        raise AssertionError("not yet")

    asyncio.run(watch())
    assert called == [(2.5, leave, exchange)] and exchange.arrived is None
