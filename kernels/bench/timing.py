"""How GPU work is timed: events on the stream, inputs rotated past the second-level cache, medians."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

CACHE_BYTES = 256 * 2**20  # more than the L2 of any GPU so far: between two uses of an input lies at least so much


@dataclass(frozen=True, slots=True)
class Timer:
    """Times `work(turn)`; `turn` counts up, for the work to take other inputs each time."""

    device: torch.device
    rounds: int = 30

    def seconds(self, work: Callable[[int], object]) -> float:
        """Median time of one call on the device; three calls before are not counted."""
        for turn in range(3):
            work(turn)
        return self._on_gpu(work) if self.device.type == "cuda" else self._on_cpu(work)

    def _on_gpu(self, work: Callable[[int], object]) -> float:
        event = partial(torch.cuda.Event, enable_timing=True)
        events = [(event(), event()) for _ in range(self.rounds)]
        for turn, (begin, end) in enumerate(events):
            begin.record()
            work(turn)
            end.record()
        torch.cuda.synchronize(self.device)
        milliseconds: list[float] = [begin.elapsed_time(end) for begin, end in events]
        return statistics.median(milliseconds) / 1e3

    def _on_cpu(self, work: Callable[[int], object]) -> float:
        taken = []
        for turn in range(self.rounds):
            began = time.perf_counter()
            work(turn)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)


def copies(size: int) -> int:
    """How many inputs of `size` bytes to go through in turn."""
    return max(2, -(-CACHE_BYTES // max(size, 1)) + 1) if size < CACHE_BYTES else 1


def copy_bandwidth(timer: Timer, size: int = 2**30) -> float:
    """Bytes per second of a device-to-device copy, reads and writes both counted: what kernels are held against."""
    source = torch.empty(size, dtype=torch.uint8, device=timer.device)
    target = torch.empty_like(source)
    return 2 * size / timer.seconds(lambda _: target.copy_(source))
