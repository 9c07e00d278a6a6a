"""Beam search: requests for one token each, of which the likeliest continuations go on as further ones.

A beam is a request like any other, which ends after one token and brings the likeliest ones. When those of all beams are there,
the search says which continuations go on, and each becomes a request that forks from the one that it continues: it shares its full
blocks and copies the rest of a block (`scheduler/kv/tails.py`), so it computes one token. So a beam is admitted, preempted, swapped
and found in the cache as others are, with the place of its search in the queue; and a search holds nothing between its steps that
others may need. Until its end it says nothing: when its engine dies, it begins again elsewhere.

What belongs here: who continues whom. Never: when they run, what a step holds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from scheduler.beams.search import BeamSearch
from scheduler.kv.tails import Tails
from scheduler.request_table import RequestTable
from scheduler.results import ResultProcessor
from scheduler.types.beams import BeamParams
from scheduler.types.messages import AddRequest, FinishReason, Output
from scheduler.types.request import ForkTail, Request
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import TokenLogprobs


@dataclass(slots=True, eq=False)
class _Group:
    """A search that runs."""

    names: list[str]  # ids under which it is answered, the best first
    asked: SamplingParams
    search: BeamSearch
    beams: list[Request] = field(default_factory=list)  # in the order of the search's
    tails: list[ForkTail] = field(default_factory=list)  # which these continue
    brought: dict[str, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    forks: int = 0
    ended: bool = False


class Beams:
    """The searches of one scheduler.

    Args:
        table: takes the beams.
        tails: keeps what they leave for those that continue them.
        results: ends those that failed.
        eos_token_ids: the model's own ends.
        arrivals: counts them.
    """

    def __init__(
        self,
        table: RequestTable,
        tails: Tails,
        results: ResultProcessor,
        eos_token_ids: frozenset[int],
        arrivals: Iterator[int],
    ) -> None:
        self._table = table
        self._tails = tails
        self._results = results
        self._eos = eos_token_ids
        self._arrivals = arrivals
        self._gathering: dict[str, dict[int, AddRequest]] = {}
        self._groups: dict[str, _Group] = {}  # by each of its names
        self._running: dict[str, _Group] = {}  # by the id of each open beam

    # --- searches come and go ---

    def __contains__(self, request_id: str) -> bool:
        """Whether a search is answered under this id."""
        return request_id in self._groups or any(request_id == message.request_id for message in self._gathered())

    def names(self) -> list[str]:
        """All ids under which searches are answered."""
        return [*self._groups, *(message.request_id for message in self._gathered())]

    def _gathered(self) -> Iterator[AddRequest]:
        return (message for found in self._gathering.values() for message in found.values())

    def gather(self, message: AddRequest) -> AddRequest | None:
        """What computes the prompt of a search, once the last of its sequences has come; None before that."""
        assert message.beams is not None
        found = self._gathering.setdefault(message.beams.group, {})
        found[message.beams.rank] = message
        if len(found) < message.beams.answers:
            return None
        del self._gathering[message.beams.group]
        first, asked = found[0], found[0].sampling
        group = _Group([found[rank].request_id for rank in sorted(found)], asked, self._search(message.beams, asked))
        self._groups |= dict.fromkeys(group.names, group)
        sampling = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            ignore_eos=True,
            logprobs=max(group.search.most, asked.logprobs or 0),
            prompt_logprobs=asked.prompt_logprobs,
        )
        return replace(first, sampling=sampling, beams=None)

    def begin(self, request: Request) -> None:
        """The request that `gather` has asked for is queued."""
        group = self._groups[request.request_id]
        request.forks = True
        group.beams = [request]
        self._running[request.request_id] = group

    def _search(self, params: BeamParams, asked: SamplingParams) -> BeamSearch:
        stops = frozenset(asked.stop_token_ids) | (frozenset() if asked.ignore_eos else self._eos)

        def ends(token: int, length: int) -> bool | None:
            too_early = length <= asked.min_tokens and (token in stops or token in self._eos)
            return None if too_early else token in stops

        return BeamSearch(params, ends, asked.max_tokens, most=max(2, 1 + len(stops)) * params.width)

    def abort(self, request_id: str, now: float) -> list[Output]:
        """End the search that is answered under this id, with all its sequences."""
        if (group := self._groups.get(request_id)) is not None:
            return self._end(group, FinishReason.ABORT, None, now)
        message = next(message for message in self._gathered() if message.request_id == request_id)
        assert message.beams is not None
        found = self._gathering[message.beams.group]
        del found[message.beams.rank]
        if not found:
            del self._gathering[message.beams.group]
        return [Output(request_id=request_id, finish_reason=FinishReason.ABORT)]

    def _end(self, group: _Group, reason: FinishReason, error: str | None, now: float) -> list[Output]:
        """End it before it has found anything."""
        times, trail = group.beams[0].times, group.beams[0].trail
        for beam in (beam for beam in group.beams if beam.request_id in self._table.open):
            del self._running[beam.request_id]  # the output of one that has ended is still to be taken
            if error is None:
                self._table.finish(beam, reason, now)
            else:
                self._results.fail(beam, error, now)
        self._forget(group)
        return [
            Output(request_id=name, finish_reason=reason, error=error, times=times, trail=trail) for name in group.names
        ]

    def _forget(self, group: _Group) -> None:
        group.ended = True
        self._tails.drop([*group.tails, *(beam.left_tail for beam in group.beams)])
        for name in group.names:
            del self._groups[name]

    # --- steps ---

    def absorb(self, outputs: list[Output], now: float) -> list[Output]:
        """Take those of beams out; in their place come those of searches that have ended."""
        if not self._running:
            return outputs
        found: list[Output] = []
        for output in outputs:
            group = self._running.get(output.request_id)
            found += [output] if group is None else self._take(group, output, now)
        return found

    def _take(self, group: _Group, output: Output, now: float) -> list[Output]:
        group.prompt_logprobs += output.prompt_logprobs
        if output.finish_reason is None:
            return []
        del self._running[output.request_id]
        if group.ended:
            return []
        if output.finish_reason in (FinishReason.ABORT, FinishReason.ERROR):
            return self._end(group, output.finish_reason, output.error, now)
        group.brought[output.request_id] = output.logprobs[0]
        if len(group.brought) < len(group.beams):
            return []
        following = group.search.advance([group.brought.pop(beam.request_id) for beam in group.beams])
        if group.search.done:
            return self._answer(group)
        self._go_on(group, following, now)
        return []

    def _go_on(self, group: _Group, following: Sequence[tuple[int, TokenLogprobs]], now: float) -> None:
        """Each continuation becomes a request."""
        parents, before = group.beams, group.tails
        going = [parents[place] for place, _ in following]
        group.tails = [beam.left_tail for beam in parents if beam.left_tail is not None and beam in going]
        self._tails.drop([*before, *(beam.left_tail for beam in parents if beam not in going)])
        group.beams = []
        for parent, (_, entry) in zip(going, following, strict=True):
            group.forks += 1
            name = f"{group.names[0]}~{group.forks}"
            beam = parent.fork(name, next(self._arrivals), entry.token_id, now)
            group.beams.append(beam)
            self._running[name] = group
            self._table.add(beam)

    def _answer(self, group: _Group) -> list[Output]:
        times, trail = group.beams[0].times, group.beams[0].trail
        self._forget(group)
        outputs: list[Output] = []
        for name, text in zip(group.names, group.search.finished, strict=False):
            entries = text.beam.entries()
            output = Output(request_id=name, finish_reason=text.reason, times=times, trail=trail)
            output.token_ids = [entry.token_id for entry in entries]
            output.prompt_logprobs = list(group.prompt_logprobs)
            if (most := group.asked.logprobs) is not None:
                output.logprobs = [replace(entry, top=entry.top[:most]) for entry in entries]
            if text.reason is FinishReason.STOP:
                output.stop_token = output.token_ids[-1]
            outputs.append(output)
        return outputs
