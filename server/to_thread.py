"""CPU-bound work in a thread if it takes long, so that the event loop keeps running.

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


async def by_size(size: int, work: Callable[[], R]) -> R:
    """The result of work on so many bytes: done at once, in a thread, or when its turn comes among the large ones."""
    if size <= ALONE_BYTES:
        return await to_thread_if_larger(size, INLINE_BYTES, work)
    return await asyncio.get_running_loop().run_in_executor(_alone, work)


async def to_thread_if_larger(size: int, than: int, work: Callable[[], R]) -> R:
    """The result of `work`, done in a thread if `size` is larger than `than`, else at once."""
    return work() if size <= than else await asyncio.to_thread(work)
