"""Which HTTP process a connection is given to, and what becomes of connections while one is started again."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from configs.settings import Settings
from server.engines.supervision.restart import RestartPolicy
from server.fronts import http_processes
from server.fronts.http_processes import HttpProcesses
from server.fronts.messages import FrontBeat
from server.http import descriptors
from server.http.descriptors import limits_of
from server.http.door import web_config
from tests.drawn import drawn
from tests.server.fronts.rig import Application, front_of


class NamedFront:
    """An HTTP process in name only."""

    def __init__(self, load=0, *, ready=True, silent=False, takes=True):
        self.load, self.ready, self.silent, self.takes = load, ready, silent, takes
        self.given, self.killed, self.stopped = [], 0, 0
        self.ended, self.heard = asyncio.Event(), FrontBeat(0, 0, 2.5)
        self.silence = 0.0

    def __call__(self, *_):
        return self

    async def connect(self):
        pass

    def give(self, connection):
        if self.takes:
            self.given.append(connection)
            self.load += 1
        return self.takes

    def kill(self, trouble=None):
        self.killed += 1

    def stop(self):
        self.stopped += 1
        self.ended.set()

    def close(self):
        self.ready = False

    def describe_end(self):
        return "process 7 was killed by SIGKILL"


def processes_of(count, sockets=()):
    chosen = Settings(http_processes=count)
    return HttpProcesses(web_config(Application(), chosen), chosen, sockets, lambda code: None)


def holding(*fronts):
    made = processes_of(len(fronts))
    for place, front in zip(made._places, fronts, strict=True):
        place.front = front
    return made


fronts = st.lists(
    st.builds(NamedFront, st.integers(0, 5), ready=st.booleans(), silent=st.booleans(), takes=st.booleans()),
    min_size=1,
    max_size=5,
)


@given(fronts, st.integers(1, 12))
@settings(max_examples=drawn(40))
def test_each_connection_goes_to_whoever_has_the_fewest_and_is_heard(fronts, connections):
    made = holding(*fronts)
    for number in range(connections):
        able = [front for front in fronts if front.ready and front.takes]
        heard = [front for front in able if not front.silent] or able
        least = min((front.load for front in heard), default=None)
        made._give(number)
        takers = [front for front in fronts if number in front.given]
        assert len(takers) == bool(able)
        for taker in takers:
            assert taker in heard and taker.load == least + 1


def test_figures_of_processes_that_are_up_silent_starting_and_gone():
    made = holding(NamedFront(3), NamedFront(2, silent=True), NamedFront(ready=False), None)
    figures = made.figures()
    assert [each.name for each in figures] == ["http-0", "http-1", "http-2", "http-3"]
    assert [each.up for each in figures] == [True, False, False, False]
    assert [each.connections for each in figures] == [3, 2, 0, 0]
    assert [each.cpu_seconds for each in figures] == [2.5, 2.5, 2.5, 0.0]


@contextlib.asynccontextmanager
async def serving(monkeypatch, incarnations, delays, count=1):
    """These processes, started in this order; readers of the listening socket in `listening`."""
    left, listening = list(incarnations), set()

    def started(*_):
        if isinstance(front := left.pop(0), Exception):
            raise front
        return front

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(http_processes, "Front", started)
    monkeypatch.setattr(http_processes, "RestartPolicy", lambda: RestartPolicy(delays=delays))
    made = processes_of(count, ["listener"])
    with monkeypatch.context() as patched:
        patched.setattr(loop, "add_reader", lambda each, *_: listening.add(each), raising=False)
        patched.setattr(loop, "remove_reader", listening.discard, raising=False)
        task = asyncio.create_task(made.serve())
        try:
            yield SimpleNamespace(processes=made, task=task, listening=listening, left=left)
        finally:
            made.stop()
            await task


async def until(condition):
    while not condition():
        await asyncio.sleep(0)


def test_connections_wait_for_a_process_that_is_started_again_later(monkeypatch):
    async def body():
        first = NamedFront()
        async with serving(monkeypatch, [first], delays=(1e6,)) as served:
            first.ready = True
            served.processes._accept(True)
            await until(lambda: served.processes._places[0].front is first)
            served.processes._accept(True)
            assert served.listening == {"listener"}
            first.ended.set()
            await until(lambda: served.processes.figures()[0].restarts == 1)
            assert not served.listening, "they would be closed, as nobody is there to take them"

    asyncio.run(body())


def test_others_are_given_connections_while_one_is_started_again(monkeypatch):
    async def body():
        first, second = NamedFront(), NamedFront()
        async with serving(monkeypatch, [first, second], delays=(1e6,), count=2) as served:
            await until(lambda: served.processes._fronts() == [first, second])
            served.processes._accept(True)
            first.ended.set()
            await until(lambda: served.processes._fronts() == [second])
            await until(lambda: served.processes.figures()[0].restarts == 1)
            assert served.listening
            served.processes._give("new")
            assert second.given == ["new"]
        assert second.stopped == 1 and not first.stopped and not served.listening

    asyncio.run(body())


def test_one_that_dies_is_started_again_with_its_name(monkeypatch, caplog):
    async def body():
        incarnations = [NamedFront() for _ in range(3)]
        async with serving(monkeypatch, incarnations, delays=(0.0,)) as served:
            tasks = []
            for number, front in enumerate(incarnations[:2]):
                await until(lambda front=front: served.processes._fronts() == [front])
                tasks.append(len(asyncio.all_tasks()))
                front.ended.set()
                await until(lambda number=number: served.processes.figures()[0].restarts == number + 1)
            await until(lambda: served.processes._fronts() == incarnations[2:])
            assert tasks[0] == tasks[1] == len(asyncio.all_tasks()), "what waited for the last one waits no more"
        assert all(front.killed for front in incarnations[:2]) and incarnations[2].stopped == 1

    asyncio.run(body())
    assert "http-0: process 7 was killed by SIGKILL; starting it again" in caplog.text


def test_one_that_cannot_be_listened_to_is_started_again_and_leaves_no_socket(monkeypatch, caplog):
    async def broken(*_, **__):
        raise OSError("no more descriptors")

    async def body():
        (first, sockets), second = front_of(monkeypatch, Application(), ServerState(), []), NamedFront()
        monkeypatch.setattr(asyncio.get_running_loop(), "create_unix_connection", broken)
        async with serving(monkeypatch, [first, second], delays=(0.0,)) as served:
            await until(lambda: served.processes._fronts() == [second])
        assert [each.fileno() == -1 for each in sockets] == [True, False, True, False]
        for each in sockets:
            each.close()

    asyncio.run(body())
    assert "http-0: cannot be listened to: no more descriptors; starting it again" in caplog.text


def test_when_none_can_be_started_the_server_ends(monkeypatch, caplog):
    async def body():
        failures = [OSError("no memory")] * 4 + [NamedFront(ready=False)]
        async with serving(monkeypatch, failures, delays=(0.0,)) as served:
            await served.task
            assert len(served.left) == 1 and not served.listening, "it does not try for ever"

    asyncio.run(body())
    assert "http-0: cannot be started: no memory; given up, as 4 starts failed" in caplog.text


@pytest.mark.parametrize("share", [1, 2, 3, 7])
@pytest.mark.parametrize("most", [16, 100, 1001])
def test_the_limit_of_connections_is_divided_and_none_is_lost(monkeypatch, share, most):
    monkeypatch.setattr(descriptors, "raise_descriptor_limit", lambda: 100_000)
    each = limits_of(Settings(max_connections=most), share).connections
    assert most <= each * share < most + share


def test_who_has_too_few_descriptors_for_its_share_says_so(monkeypatch, caplog):
    monkeypatch.setattr(descriptors, "raise_descriptor_limit", lambda: 64 + 432)
    monkeypatch.setattr(descriptors, "_open_descriptors", lambda: 0)
    limits_of(Settings(max_waiting=800), share=2)
    assert not caplog.text, "its half of them has room"
    limits_of(Settings(max_waiting=802), share=2)
    assert "so 400 connections; max_waiting is 802" in caplog.text
