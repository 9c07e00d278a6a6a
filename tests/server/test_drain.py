"""The gate: what it counts, and what waiting for it says."""

import asyncio

import pytest

from server.drain import Drain


def run(body):
    return asyncio.run(body())


@pytest.mark.parametrize("seconds", [0, 0.01, 60])
def test_nothing_under_way_is_idle_however_little_time_there_is(seconds):
    async def body():
        drain = Drain()
        drain.begin()
        return drain.draining, await drain.idle(seconds)

    assert run(body) == (True, True)


def test_idle_comes_with_the_last_that_leaves():
    async def body():
        drain = Drain()
        drain.enter()
        drain.enter()
        waiting = asyncio.create_task(drain.idle(60))
        drain.leave()
        await asyncio.sleep(0)
        still_waiting = not waiting.done()
        drain.leave()
        return still_waiting, await waiting

    assert run(body) == (True, True)


@pytest.mark.parametrize("seconds", [0, 0.01])
def test_work_that_does_not_end_in_time_is_said(seconds):
    async def body():
        drain = Drain()
        drain.enter()
        first = await drain.idle(seconds)
        drain.leave()
        drain.enter()  # the count, and not that it was once zero, is what counts
        return first, await drain.idle(seconds)

    assert run(body) == (False, False)
