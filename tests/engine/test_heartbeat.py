"""What the engine's loop says of its waits, on a clock of the test's own."""

from engine.heartbeat import Patience
from scheduler.types.messages import Heartbeat


class Wire:
    """A channel on which nothing comes: each wait takes its time, or as long as it is told to."""

    def __init__(self):
        self.now, self.takes, self.sent = 100.0, None, []

    def wait(self, seconds):
        self.now += seconds if self.takes is None else self.takes

    def send(self, event):
        self.sent.append(event)


def patience():
    wire = Wire()
    return wire, Patience(wire, lambda: wire.now)


def test_a_heartbeat_is_sent_every_second_of_waiting():
    wire, waits = patience()
    for _ in range(3):
        waits.wait("idle")
    assert wire.now == 103.0
    assert wire.sent == [Heartbeat(doing="idle", seconds=float(i)) for i in (1, 2, 3)]


def test_commands_that_wake_it_neither_hold_heartbeats_back_nor_begin_the_wait_anew():
    wire, waits = patience()
    wire.takes = 0.4
    for _ in range(6):
        waits.wait("step", 7, 128)
    assert [beat.doing for beat in wire.sent] == ["step", "step"]
    assert [round(beat.seconds, 3) for beat in wire.sent] == [1.2, 2.4]
    assert {beat.tokens for beat in wire.sent} == {128}


def test_each_step_is_waited_for_anew():
    wire, waits = patience()
    wire.takes = 0.5
    for step in range(6):
        waits.wait("step", step, 1)
    assert [beat.seconds for beat in wire.sent] == [0.5] * 3


def test_a_process_that_was_stopped_has_not_waited():
    wire, waits = patience()
    wire.takes = 3600.0
    waits.wait("step", 1, 1)
    assert [beat.seconds for beat in wire.sent] == [2.0]
