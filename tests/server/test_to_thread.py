"""Work in a thread that must not be lost sight of, whatever becomes of who waits for it."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.to_thread import seen_through


@pytest.mark.parametrize("fails", [False, True])
def test_who_is_cancelled_is_told_first_what_came_of_it(fails):
    release, told = threading.Event(), []

    def work():
        release.wait(30)
        if fails:
            raise ValueError("it failed")
        return "done"

    async def caller(pool):
        try:
            told.append(await seen_through(pool, work))
        except ValueError as error:
            told.append(str(error))
        try:
            await seen_through(pool, lambda: told.append("goes on"))
        finally:
            await seen_through(pool, lambda: told.append("cleans up"))

    async def test():
        with ThreadPoolExecutor(1) as pool:
            task = asyncio.create_task(caller(pool))
            await asyncio.sleep(0)
            for _ in range(2):
                task.cancel()
                await asyncio.sleep(0)
            assert not task.done()
            release.set()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert told == ["it failed" if fails else "done", "cleans up"]

    asyncio.run(test())


def test_a_timeout_is_still_one():
    async def test():
        with ThreadPoolExecutor(1) as pool:
            release = threading.Event()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    asyncio.get_running_loop().call_later(0.01, release.set)
                    await seen_through(pool, lambda: release.wait(30))
                    await asyncio.sleep(60)

    asyncio.run(test())
