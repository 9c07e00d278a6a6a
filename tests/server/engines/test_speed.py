"""Retry-After: when what is open will have been served, at the speed that was measured."""

from types import SimpleNamespace

import pytest

from configs.settings import Settings
from scheduler.types.messages import AddRequest, EngineStats, FinishReason, Output, StepOutputs
from scheduler.types.sampling_params import SamplingParams
from server.engines.client import EngineClient
from server.engines.speed import MOST_SECONDS, Speed
from server.errors import QueueFull
from server.telemetry.lifetime import Lifetime
from server.telemetry.metrics import Metrics


def measured(tokens_each_second, seconds=60, start=0.0):
    speed = Speed()
    speed.begun(start)
    for second in range(1, seconds + 1):
        speed.served(tokens_each_second, start + second)
    return speed


def test_a_guess_until_anything_was_served():
    speed = Speed()
    assert speed.seconds_for(10, 0.0) == 5
    speed.begun(0.0)
    speed.served(0, 2.0)
    assert speed.seconds_for(10, 3.0) == 5


def test_the_time_is_work_over_measured_speed_within_bounds():
    speed = measured(50)
    assert speed.seconds_for(0, 60.0) == speed.seconds_for(40, 60.0) == 1
    assert speed.seconds_for(1000, 60.0) == 20
    assert speed.seconds_for(10**9, 60.0) == MOST_SECONDS == 600


def test_an_idle_night_does_not_slow_the_measured_speed():
    speed = measured(50)
    speed.begun(30_000.0)
    assert speed.seconds_for(1000, 30_000.0) == 20
    assert speed.seconds_for(1000, 30_030.0) > 35, "thirty seconds of work in which nothing is served do"


def test_the_present_counts_more_than_the_past():
    speed = measured(50)
    for second in range(61, 181):
        speed.served(10, second)
    assert speed.seconds_for(100, 180.0) == pytest.approx(10, abs=1)


def test_an_answer_is_expected_to_be_as_long_as_others_were_and_no_longer_than_it_may_be():
    speed = Speed()
    assert speed.expected(70) == 70
    for generated in (10, 20, 30):
        speed.ended(generated)
    assert speed.expected(70) == 20
    assert speed.expected(7) == 7


class Overloaded:
    """A client whose engine runs `seats` sequences, a token each in a tenth of a second and a prompt token in a thousandth."""

    def __init__(self, monkeypatch, seats=4, **settings):
        self.now = 8000.0
        monkeypatch.setattr("server.engines.client.time", SimpleNamespace(monotonic=lambda: self.now))
        self.client = EngineClient("engine", Settings(**settings), Metrics())
        self.client.status.state = "ready"
        self.seats = seats
        self.running, self.queue, self.streams = [], [], {}
        self.number = 0
        self.rest(60.0)

    def rest(self, seconds):
        """Nothing is open, and the engine says so now and then."""
        for _ in range(3):
            self.client.step_ended(StepOutputs(outputs=[], stats=EngineStats()), self.now)
            self.now += seconds / 3

    def submit(self, prompt, answer, max_tokens):
        self.client.ensure_room(1)
        self.number += 1
        request = AddRequest(
            request_id=f"r{self.number}", prompt_ids=[1] * prompt, sampling=SamplingParams(max_tokens=max_tokens)
        )
        self.streams[request.request_id] = self.client.submit(request, Lifetime(received=self.now))
        self.queue.append([request.request_id, prompt, answer])

    def step(self):
        seconds = 0.1
        while self.queue and len(self.running) < self.seats:
            self.running.append(self.queue.pop(0))
            seconds += 0.001 * self.running[-1][1]
        self.now += seconds
        outputs = []
        for sequence in list(self.running):
            sequence[2] -= 1
            reason = None
            if not sequence[2]:
                self.running.remove(sequence)
                reason = FinishReason.STOP
            outputs.append(Output(request_id=sequence[0], token_ids=[5], finish_reason=reason))
        self.client.step_ended(StepOutputs(outputs=outputs, stats=EngineStats(running=len(self.running))), self.now)
        for output in outputs:
            stream = self.streams[output.request_id]
            stream.lifetime.completion_tokens += 1  # as its reader counts
            if output.finish_reason is not None:
                stream.close()

    def refusal(self, prompt=100):
        with pytest.raises(QueueFull) as refused:
            self.submit(prompt, 20, 200)
        return int(refused.value.headers["Retry-After"])

    def drained(self):
        """Seconds until all that is open has been served."""
        began = self.now
        while self.queue or self.running:
            self.step()
        return self.now - began


@pytest.mark.parametrize(("seats", "max_waiting"), [(4, 40), (4, 10), (1, 12), (16, 200)])
def test_under_overload_it_is_when_the_whole_queue_will_have_been_served(monkeypatch, seats, max_waiting):
    server = Overloaded(monkeypatch, seats, max_waiting=max_waiting)
    for step in range(200):
        while server.client.waiting < max_waiting:
            server.submit(100, 20, 200)
        server.step()
        if step == 100:
            server.drained()
            server.rest(30_000.0)
    while server.client.waiting < max_waiting:
        server.submit(100, 20, 200)
    told = server.refusal()
    assert told == pytest.approx(server.drained(), rel=0.2, abs=1)
    assert told > 5


def test_long_prompts_that_wait_count_by_their_tokens(monkeypatch):
    server = Overloaded(monkeypatch, max_waiting=40)
    told = {}
    for prompt in (50, 1000):
        for _ in range(40):
            server.submit(prompt, 20, 200)
        for _ in range(20):
            server.step()
        while server.client.waiting < 40:
            server.submit(prompt, 20, 200)
        told[prompt] = server.refusal()
        server.drained()
    assert told[1000] > 2 * told[50]
