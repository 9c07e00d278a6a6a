"""Engines read what the keepers of other machines have in memory: over real, encrypted sockets."""

import os

import pytest
import torch
import zmq

from engine.ipc.curve import new_keys
from engine.ipc.peer_list import KeeperPeer, PeerPass, nixl_package, read_pass, write_peers
from engine.ipc.sockets import connected
from engine.keeper.peers import lane as peer_lane
from engine.keeper.peers import leases
from engine.keeper.peers import store as peer_store
from engine.keeper.peers.door import PeerDoor
from engine.keeper.peers.lane import PeerGone, PeerLane
from engine.keeper.peers.messages import Alive, StillHere, Visit
from engine.keeper.peers.store import PeerStore
from engine.kv_store.store import Rows
from server.engines.nodes.door import NodeDoor
from tests.engine.keeper.keepers import SIZE, KeeperThread
from tests.engine.kv_store.test_host import block_key, drop, get, put

pytestmark = pytest.mark.processes

VISIT = Visit(fingerprint="model", block_bytes=SIZE, follows=True)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Nobody waits a second for what happens each second."""
    monkeypatch.setattr(peer_store, "_TICK_SECONDS", 0.01)
    monkeypatch.setattr(peer_store, "_POLL_MS", 5)
    monkeypatch.setattr("engine.keeper.peers.door._LOOK_SECONDS", 0.01)
    monkeypatch.setattr("engine.keeper.peers.door._SOON_SECONDS", 0.01)


class Machine:
    """A keeper with a door, and what its engines know of other machines."""

    def __init__(self, folder):
        folder.mkdir()
        self.keeper = KeeperThread(folder, blocks=8)
        self.door = NodeDoor("127.0.0.1")
        self.open()

    def open(self):
        async def opened():
            with self.door.hinges() as (arguments, descriptors):
                own = read_pass(str(os.dup(int(arguments[1]))))
                return PeerDoor(self.keeper.keeper, own, os.dup(descriptors[-1])), own

        self.opened, self.own = self.keeper.run(opened)

    def close(self):
        self.keeper.run(self.opened.close)
        self.keeper.check_integrity()
        self.keeper.close()
        self.door.close()


@pytest.fixture
def machines(tmp_path):
    two = [Machine(tmp_path / name) for name in ("here", "there")]
    for each in two:
        each.door.meet([machine.door.peer for machine in two])
    yield two
    for each in two:
        each.close()


@pytest.fixture
def here(machines):
    """What an engine of one machine sees of the other."""
    store = PeerStore(machines[0].own, VISIT)
    yield store
    store.close()


@pytest.fixture
def there(machines):
    """The host tier of an engine of the other machine."""
    store = machines[1].keeper.host()
    yield store
    store.close()


def follow(store, known, until):
    """Take in changes until so many contents are known."""

    def looked():
        changes = store.changes()
        known.difference_update(changes.went)
        known.update(each.hash for each, _ in changes.came)
        return known == {block_key(number).hash for number in until}

    return looked


def test_what_one_machine_has_in_memory_another_reads(machines, here, there):
    put(there, 1, 2, 3)
    machines[0].keeper.wait_until(follow(here, set(), (1, 2, 3)))
    assert get(here, 3, 9, 1) == [3, 1]
    assert here.put([block_key(4)], Rows(torch.zeros(1, SIZE, dtype=torch.uint8), [0])) == [0]


def test_nixl_reads_where_they_lie(machines, there):
    if nixl_package() is None:
        pytest.skip("NIXL is not installed: pip install 'headrace[nixl]'")
    from engine.keeper.peers.nixl_store import NixlPeerStore

    store = NixlPeerStore(machines[0].own, VISIT)
    put(there, 1, 2, 3)
    machines[0].keeper.wait_until(follow(store, set(), (1, 2, 3)))
    for _ in range(2):
        assert get(store, 3, 9, 1) == [3, 1]
    drop(there, 1)
    assert get(store, 3, 1, 2) == [3, 2], "what it no longer lends"
    store.close()
    machines[1].keeper.check_integrity()


def test_what_is_not_given_back_is_free_in_the_end(machines, there, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.01)
    put(there, 1, 2)
    keeper = machines[1].keeper

    async def lent():
        return machines[1].opened._leases.lend([block_key(1), block_key(7)])

    lease = keeper.run(lent)
    assert [slot >= 0 for slot in lease.slots] == [True, False]
    keeper.wait_until(lambda: not keeper.call(lambda: machines[1].opened._leases.end(lease.lease)))
    keeper.wait_until(lambda: not keeper.keeper.books._leases)


def test_what_comes_and_goes_is_told(machines, here, there):
    known = set()
    put(there, 1, 2)
    machines[0].keeper.wait_until(follow(here, known, (1, 2)))
    drop(there, 1)
    put(there, 3)
    machines[0].keeper.wait_until(follow(here, known, (2, 3)))
    assert get(here, 1, 2, 3) == [2, 3]


def test_what_is_in_doubt_is_forgotten_where_it_is(machines, here, there):
    put(there, 1, 2)
    machines[0].keeper.wait_until(follow(here, set(), (1, 2)))
    drop(here, 2)
    machines[0].keeper.wait_until(lambda: get(there, 1, 2) == [1])
    assert get(here, 1, 2) == [1]


def test_a_keeper_that_is_gone_has_nothing_until_it_is_back(machines, here, there, caplog):
    known = set()
    put(there, 1)
    machines[0].keeper.wait_until(follow(here, known, (1,)))
    other = machines[1]
    other.door.meet([])  # it has left, as far as this machine is told
    machines[0].door.meet([machines[0].door.peer])
    machines[0].keeper.wait_until(follow(here, known, ()))
    assert get(here, 1) == []
    machines[0].door.meet([machine.door.peer for machine in machines])
    other.door.meet([machine.door.peer for machine in machines])
    machines[0].keeper.wait_until(follow(here, known, (1,)))
    assert get(here, 1) == [1]


def test_a_connection_that_breaks_before_anything_is_said_is_tried_again(machines, there, monkeypatch):
    """A keeper that has not yet heard of us ends the handshake, sometimes before the first message is on its way."""
    broken, strange = [], new_keys()
    unknown = PeerPass("", "", strange.public.decode(), strange.secret.decode()).keys_for(machines[1].door.peer)

    def refused(context, kind, endpoint, prepare):
        if len(broken) == 2:
            return connected(context, kind, endpoint, prepare)
        broken.append(connected(context, kind, endpoint, unknown.apply))
        while broken[-1].poll(10, zmq.POLLOUT):
            pass  # until the message has nowhere to go
        return broken[-1]

    monkeypatch.setattr(peer_lane, "connected", refused)
    put(there, 1)
    store = PeerStore(machines[0].own, VISIT)
    machines[0].keeper.wait_until(follow(store, set(), (1,)))
    assert get(store, 1) == [1]
    store.close()
    assert len(broken) == 2 and all(each.closed for each in broken)


def test_another_models_engine_is_turned_away(machines, there, caplog):
    put(there, 1)
    store = PeerStore(machines[0].own, Visit(fingerprint="another model", block_bytes=SIZE, follows=True))
    machines[0].keeper.wait_until(lambda: "blocks of another kind: of model, not of another model" in caplog.text)
    assert not store.changes().came
    store.close()


def test_who_is_not_in_the_file_hears_nothing(machines, tmp_path, here, there):
    keys, file = new_keys(), tmp_path / "strangers.json"
    write_peers(file, [machines[1].door.peer])
    own = PeerPass(str(file), "tcp://127.0.0.1:1", keys.public.decode(), keys.secret.decode())
    stranger = PeerStore(own, VISIT)
    put(there, 1)
    machines[0].keeper.wait_until(follow(here, set(), (1,)))
    assert not stranger.changes().came
    stranger.close()
    context = zmq.Context()
    lane = PeerLane(context, own, machines[1].door.peer, VISIT)
    with pytest.raises(PeerGone, match="has not answered"):
        lane.next(0.05)
    known = PeerLane(
        context, machines[0].own, machines[1].door.peer, Visit(fingerprint="model", block_bytes=SIZE, follows=False)
    )
    known.send(Alive())
    assert isinstance(known.next(60)[0], StillHere)
    lane.close()
    known.close()
    context.destroy(linger=0)


def test_a_machine_does_not_visit_itself(machines):
    assert machines[0].own.others() == [machines[1].door.peer]
    assert isinstance(machines[0].own.others()[0], KeeperPeer)
