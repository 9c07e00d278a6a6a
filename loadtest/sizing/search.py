"""The smallest fleet of a kind that keeps the goal: its number of engines doubles until it does, then the gap is halved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadtest.sizing.fleet import Fleet, FleetKind
from loadtest.sizing.load import Condition
from loadtest.sizing.pool import TrialPool
from loadtest.sizing.trial import AS_IT_IS, FleetOutcome, SizingTrial

Fleets = Callable[[FleetKind, int], Sequence[Fleet]]  # all of a kind with so many engines, however they are set


@dataclass(frozen=True, slots=True)
class Smallest:
    """What a search found.

    Attributes:
        engines: the smallest number with which one of the fleets reaches the goal.
        outcome: of that fleet.
    """

    engines: int
    outcome: FleetOutcome


class EngineSearch:
    """Searches numbers of engines.

    Args:
        pool: simulates.
        fleets: all to be tried with a number of engines, the most promising first.
    """

    def __init__(self, pool: TrialPool, fleets: Fleets) -> None:
        self._pool = pool
        self._fleets = fleets

    def smallest(
        self,
        kind: FleetKind,
        guess: int,
        most: int,
        condition: Condition = AS_IT_IS,
        *,
        least: int | None = None,
        whole: bool = False,
    ) -> Smallest | None:
        """The smallest number of engines that reaches the goal over the stretch, or over the whole load.

        Args:
            guess: the first number that is tried.
            most: the largest one that is of interest.
            least: the smallest one.
            whole: over the whole load.

        Returns:
            None: not even the largest does.
        """
        low = (least or kind.least) - 1  # does not, or is none
        engines = min(max(guess, low + 1), most)
        if engines <= low:
            return None
        found: Smallest | None = None
        while True:
            outcome = self._pool.first_good(
                [SizingTrial(fleet, condition, whole) for fleet in self._fleets(kind, engines)]
            )
            if outcome is not None:
                found = Smallest(engines, outcome)
            else:
                low = engines
            if found is None:
                if engines == most:
                    return None
                engines = min(2 * engines, most)
            elif found.engines - low <= 1:
                return found
            else:
                engines = (low + found.engines) // 2
