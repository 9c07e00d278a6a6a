"""The engine's end of the wire over real sockets: what wakes it, what it refuses, what it delivers when it is closed."""

import os
import threading
import time

import pytest
import zmq

from engine.ipc.channel import Channel, ParentGone
from engine.ipc.codec import MessageCodec, ProtocolError
from engine.ipc.sockets import bound
from scheduler.types.messages import COMMANDS, EVENTS, AbortRequests, Failed, Shutdown, StartPhase

pytestmark = pytest.mark.processes

WAIT = 60  # seconds


class Server:
    """The HTTP process's ends of both sockets."""

    def __init__(self, folder):
        self.endpoints = [f"ipc://{folder}/{name}" for name in ("commands", "events")]
        self._context = zmq.Context()
        self.commands, self.events = (
            bound(self._context, kind, endpoint)
            for kind, endpoint in zip((zmq.PUSH, zmq.PULL), self.endpoints, strict=True)
        )
        self._commands, self._events = MessageCodec(COMMANDS), MessageCodec(EVENTS)

    def send(self, *commands):
        for command in commands:
            self.commands.send(self._commands.encode(command))

    def receive(self):
        assert self.events.poll(WAIT * 1000), "no event came"
        return self._events.decode(self.events.recv())

    def close(self):
        self._context.destroy(linger=0)


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.close()


@pytest.fixture
def channel(server):
    channel = Channel(*server.endpoints)
    yield channel
    channel.close()


def received(channel, count):
    """The next `count` commands, in bounded time. A wake-up may bring none: what is no command is dropped."""
    commands, deadline = [], time.monotonic() + WAIT
    while len(commands) < count:
        assert time.monotonic() < deadline, "nothing came"
        channel.wait(WAIT)
        commands += channel.receive()
    return commands


def test_commands_come_in_order_and_only_once(server, channel):
    sent = [AbortRequests(request_ids=[str(number)]) for number in range(50)]
    server.send(*sent)
    assert received(channel, 50) == sent
    assert list(channel.receive()) == []


def test_events_arrive_in_the_order_of_the_calls(server, channel):
    sent = [StartPhase(name=str(number), seconds=number) for number in range(50)]
    for event in sent:
        channel.send(event)
    assert [server.receive() for _ in sent] == sent


@pytest.mark.parametrize("data", [b"", b"Shutdown", b"Shutdown\0\xc1", b"StepOutputs\0\x80"])
def test_garbage_is_logged_and_what_follows_is_received(server, channel, caplog, data):
    server.commands.send(data)
    server.send(Shutdown(reason="after"))
    assert received(channel, 1) == [Shutdown(reason="after")]
    assert caplog.text.count("dropped a message that is not a command") == 1


def test_a_command_is_not_an_event(channel):
    with pytest.raises(ProtocolError, match="Shutdown is not a message of this wire"):
        channel.send(Shutdown())


def test_a_wait_ends_by_itself(channel):
    channel.wait(0.01)
    assert list(channel.receive()) == []


def test_a_wake_from_another_thread_ends_a_wait_and_is_used_up(channel):
    thread = threading.Thread(target=lambda: [channel.wake() for _ in range(100)])
    thread.start()
    channel.wait(WAIT)
    thread.join()
    channel.wait(0)  # the wakes that came after the first
    assert dict(channel._poller.poll(0)) == {}


def test_a_wake_before_the_wait_is_not_lost(channel):
    channel.wake()
    ready = threading.Event()
    thread = threading.Thread(target=lambda: (channel.wait(), ready.set()))  # would wait forever
    thread.start()
    assert ready.wait(WAIT)
    thread.join()


def test_what_was_sent_before_the_end_is_delivered(server, tmp_path):
    channel = Channel(*server.endpoints)
    for number in range(200):
        channel.send(StartPhase(name=str(number), seconds=0.0))
    channel.send(Failed(error="the last word"))
    channel.close()
    events = [server.receive() for _ in range(201)]
    assert events[-1] == Failed(error="the last word")


def test_events_wait_for_a_server_that_comes_late(tmp_path):
    endpoints = [f"ipc://{tmp_path}/{name}" for name in ("commands", "events")]
    channel = Channel(*endpoints)
    channel.send(StartPhase(name="early", seconds=1.0))
    late = Server(tmp_path)
    assert late.receive() == StartPhase(name="early", seconds=1.0)
    channel.close()
    late.close()


def test_the_parents_end_is_seen_in_a_wait_and_typing_is_not(server):
    read, write = os.pipe()
    channel = Channel(*server.endpoints, parent=read)
    os.write(write, b"typed at a terminal")
    channel.wait(WAIT)
    server.send(Shutdown())
    assert received(channel, 1) == [Shutdown()]
    os.close(write)
    for _ in range(2):  # and every time
        with pytest.raises(ParentGone):
            channel.wait(WAIT)
    channel.close()
    os.close(read)
