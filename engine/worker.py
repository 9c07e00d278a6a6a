"""What the engine's loop needs of a device: a worker that runs steps. No torch: code that only names the types need not load it."""

from typing import TYPE_CHECKING, Protocol

from scheduler.types.step import Step, StepResult

if TYPE_CHECKING:
    from torch import Tensor


class Pending(Protocol):
    """A step that a worker has been given."""

    def result(self) -> StepResult:
        """Wait for the step; one result per chunk.

        Raises:
            RuntimeError: the step as a whole failed: no sequence got a token from it, and what it wrote to its blocks is
                undefined, as is all that was computed on top of it.
            DeviceLost: the step failed, and every later one in this process would.
        """
        ...


class Worker(Protocol):
    """Runs steps on one device.

    Contract: `submit` is called with steps in the order they were planned, and each one's `result` in the same order, all from one
    thread. `depth` says how many steps may be open, that is submitted with their results still to come: with two, the device goes
    from one step to the next without waiting for the host. Steps are computed one after the other, in the order of submission.
    """

    depth: int

    @property
    def blocks(self) -> "Tensor":
        """The device's KV blocks as bytes: uint8 [blocks, block bytes], contiguous; for the transfer worker."""
        ...

    def submit(self, step: Step) -> Pending:
        """Hand over one step. It may sample after tokens that steps before it have yet to bring.

        Raises:
            As `Pending.result`.
        """
        ...

    def run(self, step: Step) -> StepResult:
        """Compute one step: `submit` and `result` in a row.

        Raises:
            As `Pending.result`.
        """
        ...
