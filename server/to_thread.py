"""CPU-bound work in a thread where it takes long, so that the event loop goes on.

A thread helps even where it holds the interpreter's lock: the lock changes hands every 5 ms, which is the longest that
other streams wait.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

# Tokenizing runs at some MB/s: a body of this size takes a few milliseconds, as long as other streams may be kept waiting.
INLINE_BYTES = 16 * 1024
# Log-probabilities of a token, with 20 alternatives, take some 50 us to write.
INLINE_SCORED_TOKENS = 128

R = TypeVar("R")


async def to_thread_if_larger(size: int, than: int, work: Callable[[], R]) -> R:
    """The result of `work`: in a thread if `size` is larger than `than`, else done at once."""
    return work() if size <= than else await asyncio.to_thread(work)
