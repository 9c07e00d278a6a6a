"""Messages between the HTTP process and an engine process: declared types, encoded with msgpack, never pickled.

On the wire a message is one ZeroMQ frame, the type's name and its msgpack body. `COMMANDS` and `EVENTS` are the whole
vocabulary; a name outside them is a protocol error. Times are `time.monotonic()` seconds, one clock for all processes of
a machine.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from scheduler.types.beams import BeamParams
from scheduler.types.block_changes import BlockChanges
from scheduler.types.engine_map import EngineMap
from scheduler.types.output_kind import OutputKind, Pooled
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import StepWork, TokenLogprobs
from scheduler.types.trail import Trail


class FinishReason(StrEnum):
    """Why a sequence ended. Every admitted request ends with exactly one of these."""

    STOP = "stop"  # EOS, a stop token or a stop string; of a request that produces no tokens: its result is there
    LENGTH = "length"  # max_tokens or the context is used up
    ABORT = "abort"  # the client left, or the server drains
    ERROR = "error"  # this request failed; `Output.error` says why
    HANDED_OVER = "handed_over"  # its first token is there and another engine goes on: no client ever reads this one


IDLE_PRIORITY = 2**31  # beyond what a client may ask for
NO_WORK = StepWork()  # of a report between steps

# --- HTTP process -> engine ------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class AddRequest:
    """Queue one sequence. Each of `n` choices, and each of several prompts, is one; they share prefix blocks.

    One with `IDLE_PRIORITY` runs on what nobody else needs (`scheduler/idle.py`).
    """

    request_id: str
    prompt_ids: list[int]
    sampling: SamplingParams
    priority: int = 0  # lower runs first, whoever sent it
    own_priority: int = 0  # lower runs first among requests of equal priority of one tenant
    cache_salt: str = ""  # prefixes are shared only between equal salts
    pin_seconds: float = 0.0  # how long the prompt's blocks are kept while there are others to evict
    tenant: str = ""  # on whose account it runs, if scheduling is fair
    weight: float = 1.0  # of the tenant, unless the engine was started with another
    adapter: str = ""  # name of the LoRA adapter; prefixes are shared only where its contents are the same
    # Output that another engine has generated: the request continues after it. The tokens count as output (limits,
    # penalties, usage) and are not sent again.
    generated_ids: list[int] = field(default_factory=list)
    produces: OutputKind = OutputKind.TOKENS
    pair_start: int = 0  # of two texts in one prompt: where the second one's tokens begin, of another type; 0: one text
    beams: BeamParams | None = None  # it is an answer of a beam search: nothing is told of it before the end
    # Of its prefix, what a tier below keeps is loaded from there, though the device has it, too.
    from_tiers: bool = False
    # End it after one token, unless it ends there anyway, and save its KV at once for who goes on.
    hand_over: bool = False
    # How long it may wait for KV that another engine still saves to a tier that both share.
    kv_wait_seconds: float = 0.0


@dataclass(slots=True, kw_only=True)
class AbortRequests:
    """Stop these and free their blocks at once. Unknown or finished ids are ignored (the end may cross this message)."""

    request_ids: list[str]


@dataclass(slots=True, kw_only=True)
class Shutdown:
    """Exit after the current step. The HTTP process has drained, or has given up on what is open."""

    reason: str = ""
    # How long KV may be written that only this process has to a tier that survives it; None: not at all, all tiers end, too.
    flush_seconds: float | None = 0.0


@dataclass(slots=True, kw_only=True)
class PublishBlocks:
    """From now on tell which KV contents come and go (`BlockChanges`), beginning with those that are there; or no longer."""

    publish: bool = True


@dataclass(slots=True, kw_only=True)
class PublishMap:
    """From now on tell what the engine does, for people who watch (`EngineMap`), beginning with what it does now; or no longer."""

    publish: bool = True


# --- engine -> HTTP process ------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class MemoryPlan:
    """The memory that will be taken, computed from headers before anything is loaded. Sizes are in bytes."""

    weights: int
    kv_per_token: int
    block_size: int
    blocks: int
    activations: int
    available: int
    max_model_len: int
    context: int  # longest request that fits: min(max_model_len, blocks * block_size)
    concurrent: float  # how many requests of that length fit at once
    arithmetic: str  # how the model will be computed, and why
    available_by: str = ""  # what says how much is available
    cores: str = ""  # how many may be kept busy, and what says so
    weights_holders: int = 1  # engines that have these weights in memory together, once
    draft: int = 0  # weights and activations of a draft model
    draft_kv_per_token: int = 0  # of its own KV, of which there are as many blocks


@dataclass(slots=True, kw_only=True)
class StartPhase:
    """One start-up phase that ended."""

    name: str
    seconds: float


@dataclass(slots=True, kw_only=True)
class WeightsRead:
    """How far the engine is with its weights: `part` of all their values, 0 to 1. Sent some times a second while they load."""

    part: float


@dataclass(slots=True, kw_only=True)
class Ready:
    """The engine has produced a real token and takes requests."""

    context: int
    vocab_size: int
    block_size: int
    blocks: int
    eos_token_ids: list[int]  # all that end an answer
    ends: str  # the same for people: each with its spelling, and with what says so
    device: str
    version: str
    computes: str  # everything besides the request on which an answer depends: model, arithmetic, device, code
    kv_fingerprint: str  # of model and KV format: the beginning of every block's name (`scheduler/types/block_hash.py`)
    max_step_tokens: int  # tokens of a step
    max_running: int  # sequences of a step
    produces: list[OutputKind] = field(default_factory=lambda: [OutputKind.TOKENS])  # what requests may ask for
    vector_size: int = 0  # numbers of a vector; 0: none are made
    reads_predictions: bool = False  # whether tokens are guessed from what a request predicts


@dataclass(slots=True, kw_only=True)
class Failed:
    """The engine cannot start (or continue) and exits: a sentence that names the cause and the fix."""

    error: str


@dataclass(slots=True, kw_only=True)
class SequencesStarted:
    """These are about to be computed for the first time. Sent before the step, so that it is known who was in one that kills."""

    request_ids: list[str]


@dataclass(slots=True, kw_only=True)
class RequestTimes:
    """The engine's part of a request's `Lifetime`."""

    queued: float
    scheduled: float
    first_token: float | None = None
    finished: float | None = None
    preemptions: int = 0
    cached_tokens: int = 0
    drafts_accepted: int = 0  # guesses that were verified
    drafts_rejected: int = 0


@dataclass(slots=True, kw_only=True)
class Output:
    """What one step produced for one request. The last output, and only that, has a `finish_reason`."""

    request_id: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # one per token, when asked for
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # appended as chunks are computed
    pooled: Pooled | None = None  # in the last one, if the request produces another kind than tokens
    finish_reason: FinishReason | None = None
    stop_token: int | None = None  # the EOS or stop token that ended it; it is the last of `token_ids`
    error: str | None = None
    times: RequestTimes | None = None  # with the first token and with the end
    trail: Trail | None = None  # with the end

    @property
    def is_plain(self) -> bool:
        """Whether it is one token and nothing else."""
        return (
            self.finish_reason is None
            and self.times is None
            and len(self.token_ids) == 1
            and not (self.logprobs or self.prompt_logprobs)
        )


@dataclass(slots=True, kw_only=True)
class TierStats:
    """One tier below the device: gauges as they are and counters since the engine started."""

    up: bool = True  # False: it failed, and the server continues without it
    blocks: int = 0  # contents that it keeps, those on their way included
    bytes: int = 0
    block_load_seconds: float = 0.0  # to load one block, as lately measured, or assumed before that
    loaded: int = 0  # blocks
    load_copies: int = 0  # ranges that were copied; adjacent blocks are copied as one
    saved: int = 0
    save_copies: int = 0
    spared: int = 0  # blocks that need not be saved: a valid copy was there
    failed: int = 0  # blocks that were damaged or gone when they were loaded
    evicted: int = 0


@dataclass(slots=True, kw_only=True)
class EngineStats:
    """Gauges as they are and counters since the engine started."""

    running: int = 0
    running_idle: int = 0  # of these, those that run on what nobody else needs
    waiting: int = 0
    blocks_total: int = 0
    blocks_used: int = 0  # referenced by a request
    blocks_cached: int = 0  # unreferenced, content kept for reuse
    blocks_free: int = 0  # unreferenced, no content
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    swapped_out: int = 0  # preemptions that saved their blocks
    recomputed_tokens: int = 0
    drafts_proposed: int = 0
    drafts_accepted: int = 0
    steps: int = 0
    integrity_checks: int = 0
    integrity_failures: int = 0
    graph_steps: int = 0  # that ran on a CUDA graph
    graphs_recorded: int = 0
    graphs_failed: int = 0  # recordings
    tiers: dict[str, TierStats] = field(default_factory=dict)  # by the tier's name


@dataclass(slots=True, kw_only=True)
class StepOutputs:
    """Everything that one step produced, one message per step. Sent without outputs if only the stats have changed.

    Most outputs are a token and nothing else. They stand in `tokens`, by their requests: that is written and read in a tenth of the
    time.
    """

    outputs: list[Output]  # those about which there is more to say
    stats: EngineStats
    tokens: dict[str, int] = field(default_factory=dict)
    step_tokens: int = 0
    step_seconds: float = 0.0
    step_work: StepWork = field(default_factory=StepWork)  # what the tokens were

    @classmethod
    def packed(
        cls, outputs: list[Output], stats: EngineStats, tokens: int = 0, seconds: float = 0.0, work: StepWork = NO_WORK
    ) -> "StepOutputs":
        """A step's outputs, of which no two are of one request."""
        plain = {output.request_id: output.token_ids[0] for output in outputs if output.is_plain}
        rest = [output for output in outputs if output.request_id not in plain]
        return cls(outputs=rest, stats=stats, tokens=plain, step_tokens=tokens, step_seconds=seconds, step_work=work)

    def each(self) -> Iterator[Output]:
        """All outputs, as they were before they were packed."""
        for request_id, token in self.tokens.items():
            yield Output(request_id=request_id, token_ids=[token])
        yield from self.outputs


HEARTBEAT_SECONDS = 1.0


@dataclass(slots=True, kw_only=True)
class Heartbeat:
    """The engine's loop is alive and waits. Sent every `HEARTBEAT_SECONDS` from the first `Ready` on while nothing else is."""

    doing: Literal["idle", "step", "transfer"]  # what it waits for: a command, a step or a transfer between tiers
    seconds: float = 0.0  # how long it has waited for that, not counting time in which the process was stopped
    tokens: int = 0  # of the step


@dataclass(slots=True, kw_only=True)
class Stopping:
    """The engine has been told to stop, and does. It may have much to write before it ends, and no heart beats meanwhile."""


Command = AddRequest | AbortRequests | PublishBlocks | PublishMap | Shutdown
Event = (
    MemoryPlan
    | StartPhase
    | WeightsRead
    | Ready
    | Failed
    | SequencesStarted
    | BlockChanges
    | EngineMap
    | StepOutputs
    | Heartbeat
    | Stopping
)

COMMANDS = (AddRequest, AbortRequests, PublishBlocks, PublishMap, Shutdown)
EVENTS = (
    MemoryPlan,
    StartPhase,
    WeightsRead,
    Ready,
    Failed,
    SequencesStarted,
    BlockChanges,
    EngineMap,
    StepOutputs,
    Heartbeat,
    Stopping,
)
