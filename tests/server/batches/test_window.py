"""How much of all batches is under way: never more than there is room for, in the order of asking, and nothing is lost."""

import asyncio
import random

import pytest

from server.batches.window import Slot, Window


@pytest.mark.parametrize("seed", range(20))
def test_room_is_never_given_twice_and_comes_back_whatever_is_cancelled(seed):
    async def test():
        rng, window = random.Random(seed), Window(8)
        held = {}

        async def line(number, sequences):
            slot = Slot(window, sequences)
            try:
                await slot.take()
                held[number] = min(sequences, 8)
                assert sum(held.values()) <= 8
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                held.pop(number, None)
                slot.give()

        tasks = []
        for number in range(60):
            tasks.append(asyncio.create_task(line(number, rng.choice([1, 1, 2, 5, 30]))))
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            if rng.random() < 0.3:
                rng.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert window._free == 8

    asyncio.run(test())


def test_who_waits_longest_is_next():
    async def test():
        window, order = Window(3), []

        async def line(number, sequences):
            await window.take(sequences)
            order.append(number)

        await window.take(3)
        tasks = [asyncio.create_task(line(number, sequences)) for number, sequences in enumerate((2, 3, 1, 1))]
        await asyncio.sleep(0)
        for given in (1, 1, 1, 2, 1, 1, 1):
            window.give(given)
            await asyncio.sleep(0)
        assert order == [0, 1, 2, 3]
        await asyncio.gather(*tasks)

    asyncio.run(test())
