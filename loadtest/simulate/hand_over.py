"""Prompts that one replica computes and another goes on with: how KV gets there, and what is there when it arrives.

Modelled: the blocks that the target lacks are in its pool when their bytes have been sent. The scheduler that finds them, and
computes what does not fill a block, is the real one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.report.records import RequestRecord
from loadtest.simulate.content import SimulatedText
from scheduler.kv.block_pool import BlockPool
from scheduler.types.messages import AddRequest


@dataclass(slots=True)
class HandOver:
    """A request after its first token, for the replica that decodes it.

    Attributes:
        message: with the first token as `generated_ids`.
        text: its prompt and answer.
        record: of the request, with its first token.
        begun, ended: when its prompt was computed, in seconds.
    """

    message: AddRequest
    text: SimulatedText
    record: RequestRecord
    begun: float
    ended: float


class Link:
    """What one replica sends KV over: one hand-over after the other.

    Args:
        bytes_per_second: bandwidth.
        seconds: latency of each hand-over.
    """

    def __init__(self, bytes_per_second: float, seconds: float) -> None:
        self._rate = bytes_per_second
        self._latency = seconds
        self._free = 0.0  # from when on nothing is being sent

    def arrival(self, size: float, begun: float, ended: float) -> float:
        """When the last of `size` bytes arrives. They are computed between `begun` and `ended`, and sent meanwhile."""
        self._free = max(ended, max(begun, self._free) + size / self._rate)
        return self._free + self._latency


def missing(pool: BlockPool, names: Sequence[bytes], prompt_ids: Sequence[int]) -> int:
    """How many blocks of a prompt, which have these `names`, a pool does not have."""
    return len(names) - len(pool.match(names, prompt_ids))


def make_resident(pool: BlockPool, names: Sequence[bytes], prompt_ids: Sequence[int]) -> None:
    """The blocks of a prompt are in a pool from now on, as cached contents. As many as are `missing` must be available."""
    found, size = pool.match(names, prompt_ids), pool.block_size
    pool.share(found)
    table = found + pool.allocate(len(names) - len(found), found[-1] if found else None)
    for index in range(len(found), len(table)):
        tokens = prompt_ids[index * size : (index + 1) * size]
        pool.publish(table[index], names[index], tokens, names[index - 1] if index else None)
    pool.release(table)
