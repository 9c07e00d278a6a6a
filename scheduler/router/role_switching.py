"""Which engine changes its role, and when: the phase that falls behind gets an engine that does less for the other.

Each request is held against a bound for each phase: its time to first token, and its time per output token after that (DistServe,
Zhong et al., OSDI 2024). Giving an instance of one stage to the stage that has become the bottleneck is the dynamic role switching
of EPD disaggregation (Singh et al., ICML 2025). There an instance is offloaded and loaded again; here every engine is a whole one,
so a switch moves nothing: what is open stays where it is, new requests go elsewhere.

Four things keep roles from swinging to and fro:

- an engine is taken only from a phase that would keep its bound if its times grew as its engines become fewer: where both are
  overloaded, nothing is switched;
- a switch waits until the engine switched last has ended what was open there at that time (its drain), and as long again as it
  takes to see what came of it;
- only requests that came after the drain are judged;
- a switch back waits twice as long as the one before it did, up to a limit, as long as they follow each other closely.

What belongs here: the decision. Never: a clock (callers pass `now`), who tells the engines, what a router does with roles.
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from scheduler.router.view import Role
from scheduler.types.step import ChunkPhase

GOAL = 0.9  # share of requests within a bound; below it a phase is behind
LEAST = 20  # requests judged, or nothing is known
YOUNG = 8  # tokens: before so many more could have come, the way from one engine to another is most of the time
MOST_PATIENCE = 32  # times the settling time, before a switch back

_ROLES = {ChunkPhase.PREFILL: Role.PREFILL, ChunkPhase.DECODE: Role.DECODE}
_OTHER = {ChunkPhase.PREFILL: ChunkPhase.DECODE, ChunkPhase.DECODE: ChunkPhase.PREFILL}


class SwitchView(Protocol):
    """What is known of an engine."""

    @property
    def role(self) -> Role:
        """Which phases it takes."""
        ...

    @property
    def available(self) -> bool:
        """Whether it takes anything now."""
        ...

    @property
    def request_ids(self) -> Collection[str]:
        """Those that are open there."""
        ...


class RequestProgress(NamedTuple):
    """How far a request is. Times are seconds of the caller's clock, None as long as there was no token."""

    received: float
    first_token: float | None
    last_token: float | None
    tokens: int


@dataclass(frozen=True, slots=True)
class PhaseBounds:
    """What a request is held against, in seconds.

    Attributes:
        ttft: from received to the first token: the bound of its prefill.
        tpot: from the first token to the last, for each token after the first: the bound of its decodes.
    """

    ttft: float
    tpot: float

    def first_token(self, request: RequestProgress, now: float) -> float | None:
        """How long it took to the first token, as a share of the bound; None if there is none and it is not late yet.

        `now` is the end of a request that has ended.
        """
        if request.first_token is not None:
            return (request.first_token - request.received) / self.ttft
        waited = (now - request.received) / self.ttft
        return waited if waited > 1 else None

    def pace(self, request: RequestProgress) -> float | None:
        """How far the tokens after the first are apart, as a share of the bound; None if there is none."""
        after = request.tokens - 1
        if request.first_token is None or request.last_token is None or after < 1:
            return None
        return (request.last_token - request.first_token) / (self.tpot * after)

    def pace_so_far(self, request: RequestProgress, now: float) -> float | None:
        """`pace` of a request that goes on; None while there are few tokens and they are not very late."""
        if request.first_token is None:
            return None
        late = (now - request.first_token) / (self.tpot * (request.tokens + YOUNG))
        pace = self.pace(request) if request.tokens > YOUNG else None
        return late if late > 1 else pace


class PhaseAttainment(NamedTuple):
    """Shares of the requests judged that keep a phase's bound, from 0 to 1; None if too few were judged."""

    prefill: float | None
    decode: float | None


class RoleSwitch(NamedTuple):
    """An engine gets another role.

    Attributes:
        engine: its index.
        before, after: its roles.
        behind: the phase for whose sake.
        attainment: of both phases.
    """

    engine: int
    before: Role
    after: Role
    behind: ChunkPhase
    attainment: PhaseAttainment

    def __str__(self) -> str:
        """Which role, and why."""
        first, pace = (("-" if share is None else f"{share:.0%}") for share in self.attainment)
        return (
            f"{self.before} -> {self.after}, as {self.behind.value} is behind: {first} of the first tokens and {pace} of the "
            "tokens after them come in time"
        )


class _Ended(NamedTuple):
    at: float
    received: float
    first: float | None  # shares of the bounds
    pace: float | None


class _Phase(NamedTuple):
    """How requests did in one phase: their times as shares of the bound."""

    phase: ChunkPhase
    ratios: list[float]

    def attainment(self, scale: float = 1.0) -> float | None:
        """The share that keeps `scale` times the bound."""
        many = len(self.ratios)
        return sum(ratio <= scale for ratio in self.ratios) / many if many >= LEAST else None

    def spares(self, engines: Sequence[SwitchView]) -> bool:
        """Whether it could do with one engine less: its requests would keep a bound that is shorter by that much."""
        many = sum(engine.available and engine.role.takes(self.phase) for engine in engines)
        kept = self.attainment(1 - 1 / many) if many else 0.0
        return kept is None or kept >= GOAL


class RoleSwitching:
    """Decides for one pool of engines.

    Args:
        bounds: of requests.
        window: seconds for which a request that has ended counts.
        settling: seconds after a drain in which nothing is switched.

    Attributes:
        bounds: of requests.
    """

    def __init__(self, bounds: PhaseBounds, *, window: float = 30.0, settling: float = 15.0) -> None:
        self.bounds = bounds
        self._window = window
        self._settling = settling
        self._ended: deque[_Ended] = deque()
        self._last: RoleSwitch | None = None
        self._switched = float("-inf")
        self._open_then: frozenset[str] = frozenset()  # of the engine switched last, when it was
        self._since = float("-inf")  # requests that came before are not judged
        self._patience = settling  # before a switch back

    def ended(self, request: RequestProgress, now: float) -> None:
        """A request ended, however it did."""
        bounds = self.bounds
        times = bounds.first_token(request, now), bounds.pace(request)
        self._ended.append(_Ended(now, request.received, *times))

    def _judged(self, open_requests: Iterable[RequestProgress], now: float) -> tuple[_Phase, _Phase]:
        """Both phases, over requests that ended within the window and those that are open."""
        while self._ended and self._ended[0].at < now - self._window:
            self._ended.popleft()
        recent = [each for each in self._ended if each.received >= self._since]
        running = [each for each in open_requests if each.received >= self._since]
        bounds = self.bounds
        first = [*(each.first for each in recent), *(bounds.first_token(each, now) for each in running)]
        pace = [*(each.pace for each in recent), *(bounds.pace_so_far(each, now) for each in running)]
        return (
            _Phase(ChunkPhase.PREFILL, [ratio for ratio in first if ratio is not None]),
            _Phase(ChunkPhase.DECODE, [ratio for ratio in pace if ratio is not None]),
        )

    def look(
        self, engines: Sequence[SwitchView], open_requests: Iterable[RequestProgress], now: float
    ) -> RoleSwitch | None:
        """The switch that is due, if any; the caller makes it. To be called every second or so.

        Args:
            engines: all there are, in the same order each time.
            open_requests: those of all engines.
            now: never less than before.
        """
        if self._last is not None and not self._open_then.isdisjoint(engines[self._last.engine].request_ids):
            self._since = now
            return None
        prefill, decode = self._judged(open_requests, now)
        behind = _behind(prefill, decode, engines)
        if behind is None or now < self._since + self._wait(behind):
            return None
        engine = _least_useful(engines, behind)
        if engine is None:
            return None
        attainment = PhaseAttainment(prefill.attainment(), decode.attainment())
        switch = RoleSwitch(engine, engines[engine].role, _ROLES[behind], behind, attainment)
        self._remember(switch, engines[engine], now)
        return switch

    def _wait(self, behind: ChunkPhase) -> float:
        """Seconds after the last drain before an engine may be switched for this phase."""
        back = self._last is not None and self._last.behind is not behind
        return self._patience if back else self._settling

    def _remember(self, switch: RoleSwitch, engine: SwitchView, now: float) -> None:
        back = self._last is not None and self._last.behind is not switch.behind
        if now - self._switched > 4 * self._patience:  # long ago: times have changed
            self._patience = self._settling
        elif back:
            self._patience = min(2 * self._patience, MOST_PATIENCE * self._settling)
        self._last, self._switched, self._since = switch, now, now
        self._open_then = frozenset(engine.request_ids)


def _behind(prefill: _Phase, decode: _Phase, engines: Sequence[SwitchView]) -> ChunkPhase | None:
    """The phase that falls behind while the other has an engine to spare."""
    for phase, other in ((prefill, decode), (decode, prefill)):
        kept = phase.attainment()
        if kept is not None and kept < GOAL and other.spares(engines):
            return phase.phase
    return None


def _least_useful(engines: Sequence[SwitchView], behind: ChunkPhase) -> int | None:
    """The engine to switch: never the last one that takes the other phase.

    One that does nothing for the phase that is behind goes before a mixed one, then the one with the fewest open requests.
    """
    able = [index for index, engine in enumerate(engines) if engine.available]
    others = [index for index in able if engines[index].role.takes(_OTHER[behind])]
    if len(others) < 2:
        return None
    return min(others, key=lambda index: (engines[index].role is Role.MIXED, len(engines[index].request_ids)))
