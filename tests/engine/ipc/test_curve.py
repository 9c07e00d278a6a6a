"""Who may connect to a wire beyond this machine, over real sockets: the one process whose key is known, and nobody else."""

import os

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from engine.ipc.channel import Channel
from engine.ipc.codec import MessageCodec
from engine.ipc.curve import Guard, new_keys, peer_keys, read_keys
from engine.ipc.sockets import bound, connected
from scheduler.types.messages import COMMANDS, EVENTS, Failed, Shutdown

pytestmark = pytest.mark.processes

ANY = "tcp://127.0.0.1:*"
WAIT = 60_000  # milliseconds


@pytest.fixture
def guard():
    made = Guard()
    yield made
    made.close()


@pytest.fixture
def listen(guard):
    """Binds a socket of a domain."""
    sockets = []

    def bind(domain="engine", kind=zmq.PULL):
        sockets.append(bound(guard.context, kind, ANY, lambda socket: guard.watch(socket, domain)))
        return sockets[-1]

    yield bind
    for socket in sockets:
        socket.close(linger=0)


def address(socket):
    return socket.last_endpoint.decode()


def outcome(guard, endpoint, prepare):
    """What comes of a handshake, as the side that connects sees it."""
    socket = guard.context.socket(zmq.PUSH)
    monitor = socket.get_monitor_socket(
        zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    )
    prepare(socket)
    socket.linger = 0
    socket.reconnect_ivl = -1
    socket.connect(endpoint)
    assert monitor.poll(WAIT)
    event = recv_monitor_message(monitor)["event"]
    socket.disable_monitor()
    monitor.close(linger=0)
    socket.close()
    return event


def test_a_channel_with_known_keys_is_heard_and_told(guard, listen):
    keys = new_keys()
    guard.admit("engine", frozenset({keys.public}))
    events = listen()
    commands = listen(kind=zmq.PUSH)
    channel = Channel(address(commands), address(events), keys=peer_keys(keys, guard.public))
    channel.send(Failed(error="said"))
    assert events.poll(WAIT)
    assert MessageCodec(EVENTS).decode(events.recv()).error == "said"
    commands.send(MessageCodec(COMMANDS).encode(Shutdown(reason="told")))
    channel.wait(WAIT / 1000)
    assert [command.reason for command in channel.receive()] == ["told"]
    channel.close()


@pytest.mark.parametrize("known", ["nobody", "another", "another domain"])
def test_a_stranger_that_knows_the_servers_key_is_refused(guard, listen, known):
    keys, other = new_keys(), new_keys()
    guard.admit("engine", frozenset() if known != "another" else frozenset({other.public}))
    if known == "another domain":
        guard.admit("engine-1", frozenset({keys.public}))
    socket = listen()
    assert outcome(guard, address(socket), peer_keys(keys, guard.public).apply) != zmq.EVENT_HANDSHAKE_SUCCEEDED


def test_whoever_speaks_no_curve_or_expects_another_server_is_refused(guard, listen):
    keys = new_keys()
    guard.admit("engine", frozenset({keys.public}))
    socket = listen()
    assert outcome(guard, address(socket), lambda socket: None) != zmq.EVENT_HANDSHAKE_SUCCEEDED
    wrong = peer_keys(keys, new_keys().public)
    assert outcome(guard, address(socket), wrong.apply) != zmq.EVENT_HANDSHAKE_SUCCEEDED
    assert outcome(guard, address(socket), peer_keys(keys, guard.public).apply) == zmq.EVENT_HANDSHAKE_SUCCEEDED


def test_keys_that_are_replaced_are_of_no_use_any_more(guard, listen):
    old, new = new_keys(), new_keys()
    guard.admit("engine", frozenset({old.public}))
    socket = listen()
    guard.admit("engine", frozenset({new.public}))
    assert outcome(guard, address(socket), peer_keys(old, guard.public).apply) != zmq.EVENT_HANDSHAKE_SUCCEEDED
    assert outcome(guard, address(socket), peer_keys(new, guard.public).apply) == zmq.EVENT_HANDSHAKE_SUCCEEDED


def test_keys_reach_a_child_by_a_pipe(guard):
    keys = peer_keys(new_keys(), guard.public)
    read, write = os.pipe()
    os.write(write, keys.encode())
    os.close(write)
    assert read_keys(str(read)) == keys
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read)


def test_a_wire_within_the_machine_needs_no_keys(tmp_path):
    context = zmq.Context()
    socket = bound(context, zmq.PULL, f"ipc://{tmp_path}/events")
    sender = connected(context, zmq.PUSH, f"ipc://{tmp_path}/events")
    sender.send(b"plain")
    assert socket.poll(WAIT) and socket.recv() == b"plain"
    context.destroy(linger=0)
