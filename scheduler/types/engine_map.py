"""What an engine does at one moment, for people who watch it: which block is whose, where requests stand, what steps did.

Every part is bounded, so that a map of any engine stays below 192 KiB as JSON.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

MOST_CELLS = 2048  # squares of a map; a larger pool has several blocks in each
MOST_REQUESTS = 256  # rows of a map: those that run first, then those that wait
MOST_OWNERS = 8  # of one square, by their rows; how many there are is said, too
MOST_STEPS = 64  # the newest since the map before
MOST_PROMPTS = 8  # of one step
_NAME = 8  # of the 32 characters that are drawn for a request


def short_name(request_id: str) -> str:
    """As much of a request's id as tells it from others, and too little to ask for it: whoever knows all of it may, where no keys
    are required, read its resumable stream."""
    job, _, number = request_id.rpartition("-")
    return f"{job.partition('-')[2][:_NAME]}-{number}" if "-" in job else request_id[:_NAME]


class BlockState(IntEnum):
    """What a block is for. Of the blocks of one square the highest state is shown."""

    FREE = 0  # no owner, no content
    CACHED = 1  # no owner; its content is kept for prompts that begin alike
    USED = 2  # requests refer to it
    SAVING = 3  # being copied to a tier below; a request may refer to it as well
    LOADING = 4  # being filled from a tier below


@dataclass(slots=True, kw_only=True)
class BlockCells:
    """The blocks of a pool as squares, each of `per_cell` neighbours, the last one perhaps of fewer.

    Attributes:
        blocks: in the pool.
        per_cell: blocks of one square; 1 as far as `MOST_CELLS` allow.
        runs: squares that go on alike, six numbers for each run: how many squares; `BlockState`; index into `owners`; which block
            of its owners' tables it is (of several blocks, the first of that state), `per_cell` more with each further square; and
            how many blocks of each square are in use or moving, and how many are cached.
        owners: sets of requests: how many, and the rows of the first of them. The first set is nobody; a set may lack requests
            that have no row.
    """

    blocks: int
    per_cell: int
    runs: list[int]
    owners: list[list[int]]


@dataclass(slots=True, kw_only=True)
class MapRequest:
    """One row: a request that has not ended."""

    name: str  # as `short_name` has it
    tenant: str
    # preempted: it waits with what it has generated; loading: its KV is on its way from a tier
    state: Literal["waiting", "preempted", "loading", "prefill", "decode"]
    queued: float  # seconds, on the clock of `EngineMap.at`
    prompt: int  # tokens
    output: int  # tokens generated so far
    most_output: int
    computed: int  # tokens whose KV is there, or in the step that runs
    cached: int  # tokens of the prompt that were found when it started
    blocks: int  # in its table
    full: int  # leading ones of them that are full and can be shared
    preemptions: int


@dataclass(slots=True, kw_only=True)
class MapStep:
    """A step that has ended."""

    number: int
    ended: float  # on the clock of `EngineMap.at`
    seconds: float
    prompt_tokens: int
    decodes: int  # tokens of sequences that decode, drafts included
    prompts: list[tuple[str, int, int]]  # a request's name, first token, tokens


@dataclass(slots=True, kw_only=True)
class MapTier:
    """A tier below the device."""

    name: str
    up: bool
    blocks: int
    bytes: int
    capacity: int  # bytes
    shared: bool  # other engines keep their blocks there, too
    loading: int  # blocks on their way to the device
    saving: int  # blocks on their way here


@dataclass(slots=True, kw_only=True)
class EngineMap:
    """An engine at one moment. Sent while somebody watches (`PublishMap`) when something has changed, at most 4 times a second."""

    at: float  # seconds, monotonic
    block_size: int  # tokens
    used: int  # blocks, like the next two
    cached: int
    free: int
    running: int  # requests, those without a row included, like the next
    waiting: int
    cells: BlockCells
    requests: list[MapRequest]
    tiers: list[MapTier]
    steps: list[MapStep] = field(default_factory=list)
