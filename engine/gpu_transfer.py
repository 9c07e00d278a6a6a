"""Small data from the device to the host without waiting: a copy to pinned memory, and an event that says when it has come."""

import torch
from torch import Tensor


class Arrival:
    """A tensor on its way to the host, as one copy that the device makes after all it was given before."""

    def __init__(self, source: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = source
        if source.device.type == "cuda":
            self._host = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            self._host.copy_(source, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(source.device))

    def wait(self) -> Tensor:
        """The tensor, once it is here.

        Raises:
            RuntimeError: the device has failed.
        """
        if self._event is not None:
            self._event.synchronize()
        return self._host
