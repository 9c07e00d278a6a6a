"""How often a run's answers repeat themselves, by what guesses brought: the two chances that the simulator draws from.

A run says which tokens came together, which is where guesses were right, but not what would have been right elsewhere: how many
guesses a server makes depends on its load. So the run is simulated with the chances of the last round, and these are moved until
the simulation has as many steps with several tokens, and as many tokens in them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from loadtest.report.records import LoadRun, RequestRecord
from loadtest.simulate.calibration.served import guesses_of
from loadtest.simulate.specs import Costs

_FIRST = {"repeat_begins": 0.02, "repeat_ends": 0.05}
_LEAST = {"repeat_begins": 1e-5, "repeat_ends": 1e-3}
_DAMPING = 0.9
_NEAR = 0.03


@dataclass(frozen=True, slots=True)
class RightGuesses:
    """What guesses brought.

    Attributes:
        events: events with several tokens.
        tokens: of these, all but one of each event.
    """

    events: int = 0
    tokens: int = 0

    def __add__(self, other: "RightGuesses") -> "RightGuesses":
        """Of both."""
        return RightGuesses(self.events + other.events, self.tokens + other.tokens)

    def near(self, other: "RightGuesses") -> bool:
        """Whether both are nearly the same."""
        return all(abs(a - b) <= _NEAR * (b + 1) for a, b in ((self.events, other.events), (self.tokens, other.tokens)))


def right_guesses(run: LoadRun) -> RightGuesses:
    """Those of a measured run; none if its server does not say that it guessed: others send tokens together for other reasons."""
    return counted(run.records) if guesses_of(run) else RightGuesses()


def counted(records: Iterable[RequestRecord]) -> RightGuesses:
    """Those of answers. A character that spans two tokens looks like one, too."""
    several = [count - 1 for record in records for _, count in record.tokens if count > 1]
    return RightGuesses(len(several), sum(several))


def moved(costs: Costs, real: RightGuesses, simulated: RightGuesses) -> Costs:
    """The chances with which a simulation comes nearer to what was real."""
    if not real.tokens:
        return replace(costs, repeat_begins=0.0, repeat_ends=0.0)
    if not costs.repeat_begins:
        return replace(costs, **_FIRST)
    often = (real.events + 1) / (simulated.events + 1)
    long = (real.tokens / real.events) / max(1.0, simulated.tokens / max(1, simulated.events))
    begins, ends = costs.repeat_begins * often**_DAMPING, costs.repeat_ends / long ** (2 * _DAMPING)
    return replace(
        costs,
        repeat_begins=min(1.0, max(_LEAST["repeat_begins"], begins)),
        repeat_ends=min(1.0, max(_LEAST["repeat_ends"], ends)),
    )
