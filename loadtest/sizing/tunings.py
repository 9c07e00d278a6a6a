"""Step budgets and running limits that fit a device: what a step may take follows from the objectives, not from a constant."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadtest.report.records import Objective
from loadtest.simulate.content import length_of
from loadtest.simulate.cost import CostModel, Work
from loadtest.sizing.fleet import Tuning
from loadtest.workload.plan import Planned

_FIRST = 0.25  # of the bound on the first token that a step of prompts may take, where there is no bound on the time between tokens
_STEP = 0.05  # seconds, without either bound
_PACE = 0.75  # of the bound on the time between tokens that a step of decodes alone may take: prompts take the rest
_LEAST_TOKENS, _MOST_TOKENS = 32, 16384
_LEAST_RUNNING, _MOST_RUNNING = 4, 1024


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a request: means over a trace."""

    prompt: float
    output: float

    @classmethod
    def of(cls, requests: Sequence[Planned]) -> "Lengths":
        """Over `requests`, of which there is at least one."""
        many = len(requests)
        return cls(sum(map(length_of, requests)) / many, sum(each.output_tokens for each in requests) / many)


def tunings(
    cost: CostModel,
    objectives: Sequence[Objective],
    lengths: Lengths,
    kv_tokens: int,
    *,
    budgets: Sequence[int] | None = None,
    running: Sequence[int] | None = None,
) -> list[Tuning]:
    """Settings to try, the most promising first.

    The step budget is the largest power of two whose full step of prompts is within the bound on the time between tokens; half and
    twice of it are tried as well. The running limit is the largest power of two for which there is room for the KV of average
    requests, and whose decodes are within three quarters of that bound.

    Args:
        kv_tokens: that an engine's memory holds.
        budgets, running: to try instead.
    """
    step = _bound([each.tpot for each in objectives])
    first = _bound([each.ttft for each in objectives])
    room = step or (first * _FIRST if first else _STEP)
    tokens = _largest(lambda many: prefill_seconds(cost, many) <= room, _LEAST_TOKENS, _MOST_TOKENS)
    held = lengths.prompt + lengths.output
    pace = room * _PACE
    seats = _largest(
        lambda many: many * held <= kv_tokens and decode_seconds(cost, many, lengths) <= pace,
        _LEAST_RUNNING,
        _MOST_RUNNING,
    )
    budgets = budgets or sorted(
        {tokens, max(_LEAST_TOKENS, tokens // 2), min(_MOST_TOKENS, 2 * tokens)},
        key=lambda each: (each != tokens, each < tokens),
    )
    running = running or [seats]
    return [Tuning(budgets[0], many) for many in running] + [Tuning(budget, running[0]) for budget in budgets[1:]]


def prefill_seconds(cost: CostModel, tokens: int) -> float:
    """A step of so many tokens of one prompt."""
    return cost.seconds(Work(tokens, 1, 1, 0, tokens, tokens * (tokens + 1) // 2))


def decode_seconds(cost: CostModel, sequences: int, lengths: Lengths) -> float:
    """A step in which so many average requests decode, half through their answers."""
    return cost.seconds(Work(sequences, sequences, sequences, round(sequences * (lengths.prompt + lengths.output / 2))))


def busy_seconds(cost: CostModel, tuning: Tuning, lengths: Lengths) -> float:
    """Of an engine for an average request, with its batches half full."""
    chunk, batch = tuning.max_step_tokens, max(1, tuning.max_running // 8)
    prefill = prefill_seconds(cost, chunk) / chunk
    return lengths.prompt * prefill + lengths.output * decode_seconds(cost, batch, lengths) / batch


def _bound(bounds: Sequence[float | None]) -> float | None:
    """The tightest of them."""
    return min((each for each in bounds if each is not None), default=None)


def _largest(fits: Callable[[int], bool], least: int, most: int) -> int:
    found = least
    while 2 * found <= most and fits(2 * found):
        found *= 2
    return found
