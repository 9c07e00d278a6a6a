"""How GPU work is timed: events on the stream, inputs that rotate past the L2 cache, medians."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

CACHE_BYTES = 256 * 2**20  # read between two uses of an input; more than the L2 of any GPU so far
SHORT = 1e-3  # seconds; of shorter work, `CALLS` calls are timed together
CALLS = 10
HEAD_START = 10**6  # cycles for which the device spins, some 0.5 ms, while the host queues what is timed
_LONGEST_HEAD_START = 64 * HEAD_START  # no head start is enough for work that waits for the device itself
_RISE = 0.3  # seconds of work after which an idle GPU has reached its full clock


class _Queue:
    """Puts pairs of events around calls of `work(turn)`, so that the host causes no gap between the calls.

    On an idle device the first event would pass at once, and the second only when the host has launched everything: for work
    shorter than its launches (some 20 us each) that would time Python. So the device spins before the first event while the host
    queues the rest. That was long enough if the first event is still to come when the last is queued.
    """

    def __init__(self, work: Callable[[int], object]) -> None:
        self._work = work
        self._turn = 0
        self._head_start = HEAD_START

    def pair(self, calls: int) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        """Events before and after `calls` calls; they are still to come."""
        event = partial(torch.cuda.Event, enable_timing=True)
        while True:
            begin, end = event(), event()
            torch.cuda._sleep(self._head_start)  # type: ignore[no-untyped-call]
            begin.record()
            for _ in range(calls):
                self._work(self._turn)
                self._turn += 1
            end.record()
            waited = not begin.query()  # type: ignore[no-untyped-call]
            if waited or self._head_start >= _LONGEST_HEAD_START:
                return begin, end
            self._head_start *= 2


@dataclass(frozen=True, slots=True)
class Timer:
    """Times `work(turn)`; `turn` counts up, so that the work can take different inputs each time."""

    device: torch.device
    rounds: int = 30

    def seconds(self, work: Callable[[int], object]) -> float:
        """The median time of one call on the device, without the host's launches; the first few calls are not counted."""
        for turn in range(3):
            work(turn)
        return self._on_gpu(work) if self.device.type == "cuda" else self._on_cpu(work)

    def busy(self, work: Callable[[int], object], seconds: float) -> None:
        """Repeat `work` for that many seconds."""
        end, turn = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            work(turn)
            turn += 1
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

    def _on_gpu(self, work: Callable[[int], object]) -> float:
        queue = _Queue(work)
        calls = CALLS if self._between([queue.pair(1)]) < SHORT else 1
        return self._between([queue.pair(calls) for _ in range(self.rounds)]) / calls

    def _between(self, pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]]) -> float:
        """The median of the seconds between the events of each pair, once all have passed."""
        torch.cuda.synchronize(self.device)
        milliseconds: list[float] = [begin.elapsed_time(end) for begin, end in pairs]
        return statistics.median(milliseconds) / 1e3

    def _on_cpu(self, work: Callable[[int], object]) -> float:
        taken = []
        for turn in range(self.rounds):
            began = time.perf_counter()
            work(turn)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)


def copies(size: int) -> int:
    """How many inputs of `size` bytes to use in turn."""
    return max(2, -(-CACHE_BYTES // max(size, 1)) + 1) if size < CACHE_BYTES else 1


def copy_bandwidth(timer: Timer, size: int = 2**30) -> float:
    """Bytes per second of a device-to-device copy, counting both reads and writes: what kernels are compared with."""
    source = torch.empty(size, dtype=torch.uint8, device=timer.device)
    target = torch.empty_like(source)
    timer.busy(lambda _: target.copy_(source), _RISE if timer.device.type == "cuda" else 0.0)
    return 2 * size / timer.seconds(lambda _: target.copy_(source))
