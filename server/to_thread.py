"""CPU-bound work beside the event loop where it takes long. A thread helps even where it holds the interpreter's lock:
the lock changes hands every 5 ms, so that other streams wait that long at most."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

# Tokenizing runs at some MB/s: a body of this size takes a few milliseconds, as long as other streams may be kept waiting.
INLINE_BYTES = 16 * 1024
# Log-probabilities of a token, with 20 alternatives, take some 50 us to write.
INLINE_SCORED_TOKENS = 128

R = TypeVar("R")


async def work_of(size: int, inline: int, work: Callable[[], R]) -> R:
    """The result of `work`, done here if `size` is at most `inline`, else in a thread."""
    return work() if size <= inline else await asyncio.to_thread(work)
