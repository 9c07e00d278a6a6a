"""When requests arrive: at a trace's own times, at times drawn at random, or as users send who wait for their answers.

A process yields times in seconds from 0, without end, from a random number generator. Open arrivals never wait for the server;
only `Closed` does, and so its latencies say less about a busy server (coordinated omission).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count, groupby
from random import Random
from typing import Any, Protocol, TypeAlias


class ArrivalError(ValueError):
    """The arrivals asked for make no sense; the message says what would."""


class Process(Protocol):
    """An endless arrival process."""

    def times(self, rng: Random) -> Iterator[float]:
        """Seconds from 0, never decreasing."""
        ...

    def with_rate(self, rate: float) -> "Process":
        """The same process with this mean rate, in requests per second. Raises ArrivalError if it has no single rate."""
        ...


def _positive(owner: Any, *names: str) -> None:
    for name in names:
        if not 0 < getattr(owner, name) < float("inf"):
            raise ArrivalError(f"{name} of {type(owner).__name__.lower()} arrivals must be positive and finite")


def _not_negative(owner: Any, name: str) -> None:
    if not 0 <= getattr(owner, name) < float("inf"):
        raise ArrivalError(f"{name} of {type(owner).__name__.lower()} arrivals must be finite and at least 0")


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent arrivals: exponential gaps, `rate` per second."""

    rate: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "rate")

    def times(self, rng: Random) -> Iterator[float]:
        """Exponential gaps, summed."""
        at = 0.0
        while True:
            at += rng.expovariate(self.rate)
            yield at

    def with_rate(self, rate: float) -> "Poisson":
        """Poisson arrivals at `rate`."""
        return Poisson(rate)


@dataclass(frozen=True, slots=True)
class Constant:
    """Equal gaps, `rate` per second, as machines send that know no chance."""

    rate: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "rate")

    def times(self, rng: Random) -> Iterator[float]:
        """Multiples of the gap; nothing is drawn."""
        return (number / self.rate for number in count())

    def with_rate(self, rate: float) -> "Constant":
        """Equal gaps at `rate`."""
        return Constant(rate)


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gamma gaps of mean 1 / `rate` and coefficient of variation `cv`: 1 is Poisson, more is burstier, less is steadier."""

    rate: float = 1.0
    cv: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "rate", "cv")
        if not 1e-3 <= self.cv <= 1e3:
            raise ArrivalError(f"cv of gamma arrivals must be from 0.001 to 1000, not {self.cv:g}")

    def times(self, rng: Random) -> Iterator[float]:
        """Gamma gaps, summed."""
        shape = 1 / self.cv**2
        scale = 1 / (self.rate * shape)
        at = 0.0
        while True:
            at += rng.gammavariate(shape, scale)
            yield at

    def with_rate(self, rate: float) -> "Gamma":
        """The same burstiness at `rate`."""
        return replace(self, rate=rate)


@dataclass(frozen=True, slots=True)
class OnOff:
    """A Markov-modulated Poisson process: `high` requests per second for `on` s on average, then `low` for `off` s."""

    high: float = 2.0
    low: float = 0.0
    on: float = 10.0
    off: float = 10.0

    def __post_init__(self) -> None:
        _positive(self, "high", "on", "off")
        _not_negative(self, "low")

    def times(self, rng: Random) -> Iterator[float]:
        """Poisson arrivals while a state lasts; how long it lasts is exponential."""
        at, busy = 0.0, True
        while True:
            rate, mean = (self.high, self.on) if busy else (self.low, self.off)
            change = at + rng.expovariate(1 / mean)
            while rate > 0 and (at := at + rng.expovariate(rate)) < change:
                yield at
            at, busy = change, not busy  # gaps have no memory: what was drawn past the change is drawn again

    def with_rate(self, rate: float) -> "OnOff":
        """Both states' rates are scaled; how long they last is not."""
        mean = (self.high * self.on + self.low * self.off) / (self.on + self.off)
        return replace(self, high=self.high * rate / mean, low=self.low * rate / mean)


@dataclass(frozen=True, slots=True)
class Ramp:
    """Poisson arrivals whose rate goes from `start` to `end` requests per second in `over` seconds, and stays there."""

    start: float = 1.0
    end: float = 10.0
    over: float = 60.0

    def __post_init__(self) -> None:
        _positive(self, "end", "over")
        _not_negative(self, "start")

    def times(self, rng: Random) -> Iterator[float]:
        """Arrivals at unit rate, mapped through the inverse of the rate's integral."""
        slope, reached = (self.end - self.start) / self.over, (self.start + self.end) / 2 * self.over
        passed = 0.0
        while True:
            passed += rng.expovariate(1)
            if passed >= reached:
                yield self.over + (passed - reached) / self.end
            else:  # the root of slope / 2 t^2 + start t = passed, in the form that bears a slope near or at 0
                yield 2 * passed / (self.start + max(0.0, self.start**2 + 2 * slope * passed) ** 0.5)

    def with_rate(self, rate: float) -> "Ramp":
        """Always raises ArrivalError."""
        raise ArrivalError("ramp arrivals have no single rate; give start and end")


@dataclass(frozen=True, slots=True)
class RateSteps:
    """Poisson arrivals at each of `rates` (requests per second) for `each` seconds, and at the last one from then on."""

    rates: tuple[float, ...] = (1.0,)
    each: float = 30.0

    def __post_init__(self) -> None:
        _positive(self, "each")
        if not self.rates or not all(0 <= rate < float("inf") for rate in self.rates) or self.rates[-1] == 0:
            raise ArrivalError("step arrivals need finite rates of at least 0, the last above 0")

    def times(self, rng: Random) -> Iterator[float]:
        """Exponential gaps at each rate in turn."""
        last = len(self.rates) - 1
        for number, rate in enumerate(self.rates):
            at, end = number * self.each, (number + 1) * self.each if number < last else float("inf")
            while rate > 0 and (at := at + rng.expovariate(rate)) < end:
                yield at

    def with_rate(self, rate: float) -> "RateSteps":
        """Always raises ArrivalError."""
        raise ArrivalError("step arrivals have no single rate; give rates")


@dataclass(frozen=True, slots=True)
class Closed:
    """`users` who each send, wait for the whole answer, think for `think` seconds (exponential with that mean), and repeat."""

    users: int = 1
    think: float = 0.0

    def __post_init__(self) -> None:
        _not_negative(self, "think")
        if not 1 <= self.users < float("inf") or self.users != int(self.users):
            raise ArrivalError(f"closed arrivals need a whole number of users, at least 1, not {self.users}")


Arrivals: TypeAlias = Poisson | Constant | Gamma | OnOff | Ramp | RateSteps | Closed
KINDS: Mapping[str, type[Arrivals]] = {
    "poisson": Poisson,
    "constant": Constant,
    "gamma": Gamma,
    "onoff": OnOff,
    "ramp": Ramp,
    "step": RateSteps,
    "closed": Closed,
}


def parse_arrivals(text: str) -> Arrivals | None:
    """`trace` (None), or a kind and its fields: `poisson:rate=5`, `step:rates=1/2/4,each=30`. Raises ArrivalError."""
    kind, _, rest = text.partition(":")
    if kind == "trace" and not rest:
        return None
    if kind not in KINDS:
        raise ArrivalError(f"unknown arrivals {kind!r}; known are trace, {', '.join(KINDS)}")
    chosen = KINDS[kind]
    known = [field.name for field in fields(chosen)]
    given: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        name, _, value = pair.partition("=")
        if name not in known:
            raise ArrivalError(f"{kind} arrivals have no {name!r}; they have {', '.join(known)}: {kind}:{known[0]}=5")
        given[name] = _value(name, value)
    return chosen(**given)


def _value(name: str, text: str) -> Any:
    try:
        if name == "rates":
            return tuple(float(part) for part in text.split("/"))
        return int(text) if name == "users" else float(text)
    except ValueError:
        raise ArrivalError(f"{name}={text!r} is not a number") from None


def spread(times: Sequence[float], tick: float, rng: Random) -> list[float]:
    """Each time moved to a uniformly drawn place inside its tick (seconds). The order stays, and with it that of sessions."""
    found: list[float] = []
    for stamp, group in groupby(times):
        found += sorted(stamp + rng.random() * tick for _ in group)
    return sorted(found)
