"""What an engine reads of other machines' memory when they answer late, wrongly or no more: never a wrong byte.

The other keepers' books are real, the connections to them are not.
"""

from collections import deque

import numpy as np
import pytest
import torch
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ipc.peer_list import KeeperPeer, PeerPass, write_peers
from engine.keeper.peers import store as peer_store
from engine.keeper.peers.holders import Holders
from engine.keeper.peers.lane import PeerGone
from engine.keeper.peers.messages import Blocks, Doubt, Fetch, StillHere, Visit
from engine.keeper.peers.store import PeerStore
from engine.kv_store.store import Rows
from tests.drawn import drawn
from tests.engine.keeper.keepers import SIZE
from tests.engine.kv_store.test_host import block_key, content, drop, get, pool_of, put

pytestmark = pytest.mark.processes  # the keeper's socket

NORTH, SOUTH = (KeeperPeer(f"tcp://{name}:1", name) for name in ("north", "south"))


class HeldLane:
    """A connection to a keeper in this process: answers lie in it until they are read, and it breaks after so many."""

    def __init__(self, copies, answers=1000, change=lambda answer, frames: (answer, frames)):
        self.copies, self.left, self.change = copies, answers, change
        self.waiting, self.fetched, self.doubted, self.closed = deque(), [], [], False

    def send(self, message):
        assert not self.closed
        if isinstance(message, Doubt):
            self.doubted += message.keys
            return
        assert isinstance(message, Fetch)
        self.fetched.append(len(message.block_keys))
        copies = self.copies(message.block_keys)
        frames = [zmq.Frame(copy) for copy in copies if copy is not None]
        self.waiting.append((Blocks(there=[copy is not None for copy in copies]), frames))

    def next(self, seconds):
        if not self.left:
            raise PeerGone("it has not answered")
        self.left -= 1
        return self.change(*self.waiting.popleft())

    def close(self):
        self.closed = True


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """An engine's view of others, whose own thread finds nobody to follow."""
    monkeypatch.setattr(peer_store, "_POLL_MS", 1)
    write_peers(tmp_path / "peers.json", [])
    own = PeerPass(str(tmp_path / "peers.json"), "tcp://here:1", "", "")
    store = PeerStore(own, Visit(fingerprint="model", block_bytes=SIZE, follows=True))
    yield store
    store.close()


def simple(*there):
    """The copies of a keeper that has these contents."""
    return lambda keys: [
        content(key.token_ids[0]).numpy().tobytes() if key.token_ids[0] in there else None for key in keys
    ]


def tell(store, peer, lane, *numbers):
    """This peer says that it has these contents."""
    store._lanes[peer] = lane
    store._holders.heard(peer, [(block_key(number), SIZE) for number in numbers], [])
    return lane


def test_contents_that_have_gone_meanwhile_are_missing_and_no_others(reader, keeper, store):
    put(store, 1, 2, 3, 4)
    lane = tell(reader, NORTH, HeldLane(lambda keys: keeper.call(lambda: keeper.keeper.copies(keys))), *range(1, 8))
    drop(store, 2)
    assert get(reader, 7, 4, 2, 1, 6, 3, 5) == [4, 1, 3]
    assert lane.fetched == [4, 3], "in parts, so that one is encrypted while another is copied"
    keeper.check_integrity()


def test_the_hash_of_other_tokens_is_a_miss(reader, keeper, store):
    put(store, 1)
    tell(reader, NORTH, HeldLane(lambda keys: keeper.call(lambda: keeper.keeper.copies(keys))), 1)
    rows = Rows(pool_of([], 2), [0, 1])
    assert reader.get([block_key(1, 5, 6), block_key(1)], rows) == [False, True]
    assert torch.equal(rows.pool, pool_of([], 1).new_tensor(np.stack([np.full(SIZE, 0xEE), content(1).numpy()])))


def test_a_peer_that_dies_between_two_parts_loses_only_what_had_not_come(reader, caplog):
    north = tell(reader, NORTH, HeldLane(simple(*range(1, 11)), answers=1), *range(1, 11))
    tell(reader, SOUTH, HeldLane(simple(9, 10)), 9, 10)
    reader.changes()
    assert get(reader, *range(1, 11)) == [1, 2, 3, 4]
    assert north.closed
    assert sorted(reader.changes().went) == sorted(block_key(number).hash for number in range(1, 9))
    assert get(reader, *range(1, 11)) == [9, 10], "another one has these, and the dead one is not asked again"
    assert caplog.text.count("cannot be read for now") == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda answer, frames: (answer, [zmq.Frame(bytes(SIZE - 1))] * len(frames)),
        lambda answer, frames: (answer, frames[:-1]),
        lambda answer, frames: (answer, [*frames, zmq.Frame(bytes(SIZE))]),
        lambda answer, frames: (Blocks(there=answer.there[:-1]), frames),
        lambda answer, frames: (StillHere(), frames),
        lambda answer, frames: (StillHere(), []),
    ],
    ids=["short blocks", "too few", "too many", "says too little", "another answer", "no answer"],
)
def test_what_was_not_asked_for_is_taken_for_nothing(reader, change):
    lane = tell(reader, NORTH, HeldLane(simple(1, 2), change=change), 1, 2)
    assert get(reader, 1, 2) == []
    assert lane.closed
    assert not reader.changes().came, "it is not believed in anything any more"


def test_a_read_into_rows_that_are_none_leaves_no_answers_for_the_next_one(reader):
    numbers = range(1, 7)
    lane = tell(reader, NORTH, HeldLane(simple(*numbers)), *numbers)
    with pytest.raises((IndexError, ValueError)):
        reader.get([block_key(number) for number in numbers], Rows(pool_of([], 6), [0, 99, 1, 2, 3, 4]))
    assert lane.closed
    reader._lanes[NORTH] = HeldLane(simple(*numbers))
    assert get(reader, 6, 5) == [6, 5]


def test_who_is_told_to_forget_is_whoever_has_it(reader):
    north, south = tell(reader, NORTH, HeldLane(simple(1, 2)), 1, 2), tell(reader, SOUTH, HeldLane(simple(2, 3)), 2, 3)
    drop(reader, 2, 9)
    assert north.doubted == south.doubted == [block_key(2).hash]
    assert get(reader, 1, 2, 3) == [1, 3]


def test_neighbours_are_read_from_one_keeper(reader):
    north, south = HeldLane(simple(1, 2, 3)), HeldLane(simple(2, 3, 4))
    tell(reader, SOUTH, south, 2, 3, 4)
    tell(reader, NORTH, north, 1, 2, 3)
    assert get(reader, 1, 2, 3, 4) == [1, 2, 3, 4]
    assert north.fetched == [3] and south.fetched == [1]


peers = st.sampled_from([NORTH, SOUTH])
some = st.lists(st.integers(1, 5), max_size=4, unique=True)
events = st.one_of(
    st.tuples(st.just("came"), peers, some),
    st.tuples(st.just("went"), peers, some),
    st.tuples(st.just("lost"), peers, st.none()),
    st.tuples(st.just("dropped"), st.none(), some),
    st.tuples(st.just("read"), st.none(), some),
)


@given(st.lists(events, max_size=25))
@settings(max_examples=drawn(80))
def test_whoever_adds_up_the_changes_knows_what_is_there(events):
    holders, has, known = Holders(), {NORTH: set(), SOUTH: set()}, set()
    for what, peer, numbers in events:
        match what:
            case "came":
                holders.heard(peer, [(block_key(number), SIZE) for number in numbers], [])
                has[peer].update(numbers)
            case "went":
                holders.heard(peer, [], [block_key(number).hash for number in numbers])
                has[peer].difference_update(numbers)
            case "lost":
                holders.lose(peer)
                has[peer].clear()
            case "dropped":
                told = holders.dropped([block_key(number).hash for number in numbers])
                expected = {each: {block_key(n).hash for n in numbers if n in has[each]} for each in has}
                assert {each: set(keys) for each, keys in told.items()} == {e: k for e, k in expected.items() if k}
                for each in has.values():
                    each.difference_update(numbers)
            case "read":
                places = holders.places([block_key(number) for number in numbers])
                assert sorted(place for held in places.values() for place in held) == [
                    place for place, number in enumerate(numbers) if any(number in each for each in has.values())
                ]
                assert all(numbers[place] in has[each] for each, held in places.items() for place in held)
                changes = holders.changes()
                came = {each.token_ids[0] for each, _ in changes.came}
                assert not {block_key(number).hash for number in came} & set(changes.went)
                known = {n for n in known if block_key(n).hash not in changes.went} | came
                assert known == has[NORTH] | has[SOUTH]
