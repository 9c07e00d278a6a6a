"""Requests that need something made wait for it, and for nothing else; nobody waits with them."""

import threading

import pytest

from engine.grammar.anteroom import Anteroom
from scheduler.types.messages import AbortRequests, AddRequest, FinishReason, Output, Shutdown
from scheduler.types.sampling_params import SamplingParams

SHUTDOWN = Shutdown(reason="the test")


def request(name, grammar=""):
    return AddRequest(request_id=name, prompt_ids=[1], sampling=SamplingParams(max_tokens=1, grammar=grammar))


class Made:
    """Makes what a request needs when it is told to."""

    def __init__(self):
        self.go, self.done, self.asked, self.kept = threading.Event(), set(), [], set()

    @property
    def keeps(self):
        return bool(self.kept)

    def missing(self, request):
        if request.sampling.grammar in self.done:
            self.kept.add(request.request_id)
            return ""
        return request.sampling.grammar

    def ended(self, request_id):
        self.kept.discard(request_id)

    def prepare(self, sampling):
        self.asked.append(sampling.grammar)
        assert self.go.wait(30)
        self.done.add(sampling.grammar)
        if sampling.grammar == "broken":
            raise ValueError("the worker will say so")


@pytest.fixture
def room():
    made, woken = Made(), threading.Semaphore(0)
    yield made, woken, Anteroom(made, woken.release)
    made.go.set()


def names(commands):
    return [getattr(command, "request_id", type(command).__name__) for command in commands]


def test_what_is_made_beside_is_waited_for_by_its_own_request(room):
    made, woken, anteroom = room
    commands = [request("a"), request("b", "g"), request("c"), request("d", "broken")]
    assert names(anteroom.pass_on(commands)) == ["a", "c"]
    assert names(anteroom.pass_on([])) == []
    made.go.set()
    assert woken.acquire(timeout=30) and woken.acquire(timeout=30)
    assert names(anteroom.pass_on([])) == ["b", "d"]
    assert names(anteroom.pass_on([request("e", "g"), request("b", "g")])) == ["e", "b"]


def test_whoever_leaves_or_is_sent_away_goes_first(room):
    _, _, anteroom = room
    assert names(anteroom.pass_on([request("a", "g"), request("b", "g"), request("c", "h")])) == []
    left = AbortRequests(request_ids=["b", "never"])
    assert names(anteroom.pass_on([left])) == ["b", "AbortRequests"]
    assert names(anteroom.pass_on([SHUTDOWN])) == ["a", "c", "Shutdown"]
    assert names(anteroom.pass_on([])) == []


def test_each_is_made_once_and_not_at_all_once_nobody_waits_for_it(room):
    made, woken, anteroom = room
    commands = [request("a", "g"), request("b", "h"), request("c", "h"), request("d", "i"), request("e", "g")]
    assert names(anteroom.pass_on(commands)) == []
    assert names(anteroom.pass_on([AbortRequests(request_ids=["b", "d"])])) == ["b", "d", "AbortRequests"]
    made.go.set()
    assert all(woken.acquire(timeout=30) for _ in range(3))  # of the one that is not made, too
    assert names(anteroom.pass_on([])) == ["a", "e", "c"]
    assert made.asked == ["g", "h"] and made.kept == {"a", "c", "e"}
    left = Output(request_id="a", finish_reason=FinishReason.STOP)
    anteroom.ended([left, Output(request_id="c", token_ids=[1])])
    assert made.kept == {"c", "e"}


def test_where_nothing_is_ever_made_there_is_no_thread():
    before = threading.active_count()
    anteroom = Anteroom(None, pytest.fail)
    assert names(anteroom.pass_on([request("a", "g"), SHUTDOWN])) == ["a", "Shutdown"]
    assert threading.active_count() == before
