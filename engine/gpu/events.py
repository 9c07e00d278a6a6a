"""What the device has done, told without waiting: points in its work, and small data on its way to the host."""

import torch
from torch import Tensor


class Mark:
    """A point in what the device was given: all before it is done once `wait` returns."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Until the device has come there.

        Raises:
            RuntimeError: the device has failed.
        """
        if self._event is not None:
            self._event.synchronize()


class Arrival:
    """A tensor on its way to the host, as one copy that the device makes after all it was given before."""

    def __init__(self, source: Tensor) -> None:
        self._host = source
        if source.device.type == "cuda":
            self._host = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            self._host.copy_(source, non_blocking=True)
        self._mark = Mark(source.device)

    def wait(self) -> Tensor:
        """The tensor, once it is here.

        Raises:
            RuntimeError: the device has failed.
        """
        self._mark.wait()
        return self._host
