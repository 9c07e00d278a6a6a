"""Lines of a benchmark's table, and the cases that give them: a case that fails costs only itself."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Result:
    """One line: what was reached, out of what, in `unit`; targets are set for `ratio` (1 is the floor or the peer)."""

    name: str
    seconds: float
    reached: float
    of: float
    unit: str

    @property
    def ratio(self) -> float:
        """The share of what is possible, or of what the peer reaches."""
        return self.reached / self.of


@dataclass(frozen=True, slots=True)
class Skipped:
    """A peer that cannot do this, and why."""

    name: str
    skipped: str


@dataclass(frozen=True, slots=True)
class FailedCase:
    """A case that raised; the lines that it gave before remain."""

    name: str
    error: str


Lines = Iterator[Result | Skipped]
Case = tuple[str, Callable[[], Lines]]


def attempted(cases: Iterable[Case]) -> Iterator[Result | Skipped | FailedCase]:
    """The lines of all cases, in order; what a case leaves on a GPU is gone before the next begins."""
    for name, case in cases:
        failed = None
        try:
            yield from case()
        except Exception as error:
            failed = FailedCase(name, f"{type(error).__name__}: {error}")
        if failed is not None:  # outside `except`, so that the error no longer holds the case's tensors
            yield failed
        if torch.cuda.is_available():
            with suppress(RuntimeError):  # from a GPU that the case left unusable: each later case will say so itself
                torch.cuda.empty_cache()
