"""Lines of a benchmark's table, and the cases that give them: one that fails costs itself only."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Result:
    """One line: what was reached, of what, in `unit`; `ratio` is what the bars are about (1 is the floor or the peer)."""

    name: str
    seconds: float
    reached: float
    of: float
    unit: str

    @property
    def ratio(self) -> float:
        """Share of what is possible, or of what the peer reaches."""
        return self.reached / self.of


@dataclass(frozen=True, slots=True)
class Skipped:
    """A peer that does not do this, and why."""

    name: str
    skipped: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A case that raised: lines that it gave before stand."""

    name: str
    error: str


Lines = Iterator[Result | Skipped]
Case = tuple[str, Callable[[], Lines]]


def attempted(cases: Iterable[Case]) -> Iterator[Result | Skipped | Failed]:
    """The lines of all cases in order; what a case leaves on a GPU is gone before the next."""
    for name, case in cases:
        failed = None
        try:
            yield from case()
        except Exception as error:
            failed = Failed(name, f"{type(error).__name__}: {error}")
        if failed is not None:  # here, where the error no longer holds the case's tensors
            yield failed
        if torch.cuda.is_available():
            with suppress(RuntimeError):  # of a GPU that the case has left unusable: each of the others will say so
                torch.cuda.empty_cache()
