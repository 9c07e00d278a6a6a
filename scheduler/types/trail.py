"""What became of one request in one engine, as plain data: why it waited, its prompt's chunks, who took its blocks, its loads.

Sent once, with its last output. Times are seconds of the engine's clock. Every list is bounded: what came after is counted.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class WaitCause(StrEnum):
    """Why a request stood in the queue."""

    PLACES = "places"  # as many requests ran as a step may have
    BLOCKS = "blocks"  # too few KV blocks were free for the first in line, itself or another
    TOKENS = "tokens"  # the step's tokens went to requests that ran
    PREFIX = "prefix"  # another request was computing a prefix that both share
    HAND_OVER = "hand_over"  # another engine was still saving its KV
    DRAFTS = "drafts"  # its drafts were being verified when it was preempted


@dataclass(slots=True, kw_only=True)
class Wait:
    """A time in the queue for one cause."""

    cause: WaitCause
    since: float
    until: float
    # Id of the request that stood first in line, or that computed the prefix; empty: nobody in particular.
    behind: str = ""
    lacking: int = 0  # most KV blocks that were missing
    running: int = 0  # requests that ran when it began
    holders: list[str] = field(default_factory=list)  # of these, those with the most blocks


@dataclass(slots=True, kw_only=True)
class PromptChunk:
    """Tokens `[start, start + tokens)` of a prompt, or of a sequence that was computed again, and the step that computed them."""

    step: int
    start: int
    tokens: int
    planned: float
    ended: float | None = None  # None: its step has brought nothing
    step_tokens: int = 0  # of all requests
    step_seconds: float = 0.0


@dataclass(slots=True, kw_only=True)
class TakenBack:
    """A preemption: it lost its blocks and stood in the queue again."""

    at: float
    by: str  # id of the request that got the blocks; its own if it gave way itself
    lost: int  # computed tokens that nobody else kept on the device
    saved: bool  # to a tier below, to be loaded again
    resumed: float | None = None


@dataclass(slots=True, kw_only=True)
class KvLoad:
    """KV that was loaded from a tier below the device; the request had no chunk meanwhile."""

    since: float
    until: float | None = None
    blocks: int = 0
    tiers: list[str] = field(default_factory=list)
    whole: bool = True  # False: some of it was damaged or gone, and was computed instead


@dataclass(slots=True, kw_only=True)
class Trail:
    """What became of one request in one engine."""

    waits: list[Wait] = field(default_factory=list)
    chunks: list[PromptChunk] = field(default_factory=list)
    preemptions: list[TakenBack] = field(default_factory=list)
    loads: list[KvLoad] = field(default_factory=list)
    more_chunks: int = 0  # beyond those that are listed
    found_tokens: int = 0  # of its prefix, on the device when it started
    evicted: bool = False  # the first block that it missed had been there, and was evicted
