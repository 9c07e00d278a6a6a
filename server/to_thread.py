"""Work in threads, so that the event loop keeps running: for the CPU if it takes long, and for the disk.

A thread helps even if it holds the interpreter's lock: the lock changes hands every 5 ms, so other streams wait no longer
than that.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

# Tokenizing runs at a few MB/s: a body of this size takes some milliseconds, as long as other streams may be kept waiting.
INLINE_BYTES = 16 * 1024
# Log-probabilities of a token, with 20 alternatives, take about 50 us to write.
INLINE_SCORED_TOKENS = 128
# Of vectors: about 0.5 us each to write.
INLINE_NUMBERS = 16 * 1024

R = TypeVar("R")


# A body of this size may take a second and ten times its own memory: such are worked on one at a time, so that neither adds up.
ALONE_BYTES = 256 * 1024
_alone = ThreadPoolExecutor(max_workers=1, thread_name_prefix="large-body")
# What nobody waits for never stands in line before what somebody does.
_background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="background")


async def by_size(size: int, work: Callable[[], R]) -> R:
    """The result of work on so many bytes: done at once, in a thread, or when its turn comes among the large ones."""
    if size <= ALONE_BYTES:
        return await to_thread_if_larger(size, INLINE_BYTES, work)
    return await asyncio.get_running_loop().run_in_executor(_alone, work)


async def to_thread_if_larger(size: int, than: int, work: Callable[[], R]) -> R:
    """The result of `work`, done in a thread if `size` is larger than `than`, else at once."""
    return work() if size <= than else await asyncio.to_thread(work)


async def in_background(work: Callable[[], R]) -> R:
    """The result of work that nobody waits for: one piece at a time, in a thread that does nothing else."""
    return await asyncio.get_running_loop().run_in_executor(_background, work)


async def seen_through(pool: ThreadPoolExecutor, work: Callable[[], R], *, owed: bool = False) -> R:
    """What comes of work in a thread, in any case.

    A thread goes on when its caller is cancelled, and what it does may last: a row, a file. So the caller is told how it ended, and
    is cancelled where it awaits something next, before it begins more work of this kind, unless that is `owed`.
    """
    task = asyncio.current_task()
    assert task is not None
    if task.cancelling() and not owed:
        await asyncio.sleep(0)
    done, cancelled = asyncio.wrap_future(pool.submit(work)), False
    while not done.done():
        try:
            await asyncio.wait({done})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        task.uncancel()  # it is asked for once, and comes later
        task.cancel()
    return done.result()
