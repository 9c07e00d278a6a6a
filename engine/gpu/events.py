"""Points in the work of a device, and copies to the host that are waited for only when they are read."""

import torch
from torch import Tensor


class DeviceEvent:
    """A point in the work given to a device: once `wait` returns, all work before it is done."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Wait until the device has reached this point.

        Raises:
            RuntimeError: the device has failed.
        """
        if self._event is not None:
            self._event.synchronize()


class AsyncCopy:
    """A copy of a tensor to the host, which the device makes after the work it was given before."""

    def __init__(self, source: Tensor) -> None:
        self._host = source
        if source.device.type == "cuda":
            self._host = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            self._host.copy_(source, non_blocking=True)
        self._event = DeviceEvent(source.device)

    def wait(self) -> Tensor:
        """Wait for the copy and return it.

        Raises:
            RuntimeError: the device has failed.
        """
        self._event.wait()
        return self._host
