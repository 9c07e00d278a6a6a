"""How time is taken on a GPU, on a device of two clocks: the host's, and that of a queue which the host fills."""

import time

import pytest
import torch

from kernels.bench import timing
from kernels.bench.timing import CALLS, Timer


class Device:
    """In seconds: `now` is the host's clock, `free` when the device has done all it was given."""

    def __init__(self, monkeypatch):
        self.now = self.free = 0.0
        device = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = device.free = max(device.free, device.now)

            def query(self):
                return self.at <= device.now

            def elapsed_time(self, other):
                assert other.at <= device.now, "both must have passed"
                return 1e3 * (other.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.run(cycles / 2e9), raising=False)
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def synchronize(self, _=None):
        self.now = max(self.now, self.free)

    def run(self, seconds, launch=1e-6):
        """The host launches work that takes the device this long."""
        self.now += launch
        self.free = max(self.free, self.now) + seconds


@pytest.mark.parametrize("launch", [1e-6, 2e-5, 5e-4])  # the last: not even ten calls fit the first head start
@pytest.mark.parametrize("taken", [8e-6, 3e-4, 2e-3])
def test_launches_are_not_timed(monkeypatch, taken, launch):
    device = Device(monkeypatch)
    found = Timer(torch.device("cuda"), rounds=5).seconds(lambda _: device.run(taken, launch))
    assert found == pytest.approx(taken, rel=1e-6)


def test_work_that_waits_for_the_device_is_timed_too(monkeypatch):
    """No head start is enough for it: what it launches first is left out, no more."""
    device = Device(monkeypatch)

    def work(_):
        device.run(2e-3, 1e-4)
        device.synchronize()
        device.run(1e-3, 1e-4)

    assert Timer(torch.device("cuda"), rounds=3).seconds(work) == pytest.approx(3.1e-3, rel=1e-6)


@pytest.mark.parametrize(("taken", "calls"), [(8e-6, CALLS), (2e-3, 1)])
def test_every_call_has_a_turn_of_its_own(monkeypatch, taken, calls):
    """Inputs rotate within a pair of events too."""
    device, turns = Device(monkeypatch), []

    def work(turn):
        turns.append(turn)
        device.run(taken)

    Timer(torch.device("cuda"), rounds=4).seconds(work)
    assert turns == [0, 1, 2, *range(1 + 4 * calls)]


def test_busy_for_as_long_as_asked(monkeypatch):
    device = Device(monkeypatch)
    Timer(torch.device("cuda")).busy(lambda _: device.run(0.04), timing._RISE)
    assert timing._RISE <= device.now < timing._RISE + 0.05
