"""The room for bodies: bounded, never stuck, given back."""

import asyncio
import random

import pytest

from server.body_room import BodyRoom
from server.errors import TooManyBodies
from tests.server.engines.harness import run


async def steps(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_where_it_is_full_the_one_that_is_at_it_for_longest_reads_on():
    async def body():
        room = BodyRoom(limit=100, free=10)
        with room.share() as first:
            await first.grow(60)
            with room.share() as second, room.share() as small:
                waiting = asyncio.create_task(second.grow(50))
                await steps()
                assert not waiting.done() and room.held == 110
                await small.grow(10)  # as much as anybody may have
                await first.grow(500)
                assert not waiting.done() and room.held == 620
                third = asyncio.create_task(small.grow(1))
                await steps()
                assert not third.done()
                room.remove(first)
                first.held = 0
                await waiting
                await third
                await second.grow(200)  # it is the oldest now
        assert room.held == 0

    run(body)


def test_who_waits_too_long_is_told_so_and_makes_room():
    async def body():
        room = BodyRoom(limit=100, free=10, patience=0.02)
        with room.share() as first, room.share() as third:
            await first.grow(60)
            with pytest.raises(TooManyBodies, match="110 bytes; the limit is 100") as refusal, room.share() as second:
                await second.grow(50)
            assert refusal.value.headers == {"Retry-After": "5", "Connection": "close"}
            await third.grow(40)
            assert room.held == 100
        assert room.held == 0

    run(body)


@pytest.mark.parametrize("seed", range(5))
def test_all_get_done_and_no_more_is_held_than_the_limit_says(seed):
    """Beyond the limit stand the body that is read on, and of each other what comes before it can wait."""

    async def body():
        draw = random.Random(seed)
        room = BodyRoom(limit=1000, free=50)
        most = 0

        async def request() -> None:
            nonlocal most
            with room.share() as share:
                for _ in range(draw.randrange(20)):
                    await share.grow(draw.randrange(1, 50))
                    most = max(most, room.held)
                    await steps(draw.randrange(4))

        async with asyncio.timeout(60):
            await asyncio.gather(*(request() for _ in range(100)))
        assert 1000 < most <= 1000 + 20 * 50 + 100 * 100
        assert room.held == 0

    run(body)


def test_a_request_that_is_cancelled_while_it_waits_gives_its_place_back():
    async def body():
        room = BodyRoom(limit=100, free=10)

        async def request() -> None:
            with room.share() as share:
                await share.grow(70)
                await asyncio.sleep(60)

        tasks = [asyncio.create_task(request()) for _ in range(3)]
        await steps()
        for task in reversed(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert room.held == 0

    run(body)
