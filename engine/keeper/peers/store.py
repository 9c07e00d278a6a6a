"""What the keepers of other machines have in memory, as one tier of an engine: it reads there, and puts nothing.

A thread follows all of them: what each has, what comes and goes. What is loaded is asked for on connections of its own, a few
blocks at a time, so that one part is encrypted while another is copied. A keeper that does not answer has nothing, until it does.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

import numpy as np
import zmq

from engine.ipc.peer_list import KeeperPeer, PeerPass
from engine.keeper.peers.holders import Holders
from engine.keeper.peers.lane import PeerGone, PeerLane
from engine.keeper.peers.messages import Alive, Blocks, Doubt, Fetch, News, Visit
from engine.kv_store.store import BlockStore, Capabilities, Rows
from scheduler.types.block_hash import BlockKey
from scheduler.types.transfers import TierChanges

log = logging.getLogger("headrace.engine")

_TICK_SECONDS = 1.0  # between two questions whether a keeper is there, and two looks who the others are
_SILENCE_SECONDS = 4.0  # of a keeper that is gone
_FETCH_SECONDS = 10.0  # for a part
_PART = 4  # blocks of one message
_POLL_MS = 500  # until it is noticed that the store is closed


class PeerStore(BlockStore):
    """Blocks in the memory of other machines, under the contract of `BlockStore`; never lost as a whole.

    Args:
        own: says who we are, and who the others are.
        visit: what our blocks are.
    """

    capabilities = Capabilities(shared=True, read_only=True)

    def __init__(self, own: PeerPass, visit: Visit) -> None:
        self._own, self._visit = own, visit
        self._context = zmq.Context()
        self._holders = Holders()
        self._fetching = threading.Lock()
        self._lanes: dict[KeeperPeer, PeerLane] = {}  # of those who load
        self._follows: dict[KeeperPeer, PeerLane] = {}  # of the thread
        self._poller = zmq.Poller()  # the thread's
        self._told: set[str] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="kv-peers", daemon=True)
        self._thread.start()

    def put(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[int]:
        """Nothing is kept."""
        return [0] * len(block_keys)

    def get(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[bool]:
        """Copy these contents from wherever they are; False where one is not there."""
        arrived = [False] * len(block_keys)
        with self._fetching:
            for peer, places in self._holders.places(block_keys).items():
                try:
                    for place, frame in self._fetched(peer, block_keys, places):
                        rows.array[rows.ids[place]] = np.frombuffer(frame, np.uint8)
                        arrived[place] = True
                except PeerGone as error:
                    self._give_up(peer, str(error))
                except BaseException:
                    self._part(peer)  # what it still sends is no answer to the next question
                    raise
        return arrived

    def drop(self, keys: Iterable[bytes]) -> None:
        """Have these contents forgotten wherever they are."""
        with self._fetching:
            for peer, some in self._holders.dropped(list(keys)).items():
                with suppress(PeerGone):  # then it has nothing for us
                    self._lane(peer).send(Doubt(keys=some))

    def changes(self) -> TierChanges:
        """What came and went since the last call."""
        return self._holders.changes()

    def on_changes(self, tell: Callable[[], None]) -> None:
        """Call this when a keeper tells of changes."""
        self._holders.tell = tell

    def close(self) -> None:
        """End all connections."""
        self._closing.set()
        self._thread.join()
        with self._fetching:
            for lane in self._lanes.values():
                lane.close()
            self._context.destroy(linger=0)

    # --- loads ---

    def _lane(self, peer: KeeperPeer) -> PeerLane:
        if peer not in self._lanes:
            visit = Visit(fingerprint=self._visit.fingerprint, block_bytes=self._visit.block_bytes, follows=False)
            self._lanes[peer] = PeerLane(self._context, self._own, peer, visit)
        return self._lanes[peer]

    def _fetched(
        self, peer: KeeperPeer, block_keys: Sequence[BlockKey], places: Sequence[int]
    ) -> Iterator[tuple[int, "memoryview[int]"]]:
        """The bytes of those of these contents that the peer still has."""
        lane = self._lane(peer)
        parts = [places[begin : begin + _PART] for begin in range(0, len(places), _PART)]
        for part in parts:
            lane.send(Fetch(block_keys=[block_keys[place] for place in part]))
        for part in parts:
            answer, frames = lane.next(_FETCH_SECONDS)
            there = [place for place, is_there in zip(part, getattr(answer, "there", ()), strict=False) if is_there]
            if not isinstance(answer, Blocks) or len(frames) != len(there):
                raise PeerGone(f"the keeper at {peer.endpoint} sends what was not asked for")
            for place, frame in zip(there, frames, strict=True):
                if len(frame) != self._visit.block_bytes:
                    raise PeerGone(f"the keeper at {peer.endpoint} sends blocks of {len(frame)} bytes")
                yield place, frame.buffer

    def _give_up(self, peer: KeeperPeer, why: str) -> None:
        """It has nothing for us, until it answers again."""
        self._part(peer)
        self._lose(peer, why)

    def _part(self, peer: KeeperPeer) -> None:
        if (lane := self._lanes.pop(peer, None)) is not None:
            lane.close()

    def _lose(self, peer: KeeperPeer, why: str) -> None:
        if why not in self._told:
            log.warning("KV of another node cannot be read for now: %s", why)
        self._told.add(why)
        self._holders.lose(peer)

    # --- in the thread ---

    def _follow(self) -> None:
        ticked = 0.0
        while not self._closing.is_set():
            self._poller.poll(_POLL_MS)
            for peer in list(self._follows):
                self._hear(peer)
            if time.monotonic() - ticked >= _TICK_SECONDS:
                ticked = time.monotonic()
                self._tick()
        for peer in list(self._follows):
            self._leave(peer)

    def _hear(self, peer: KeeperPeer) -> None:
        try:
            while (found := self._follows[peer].waiting()) is not None:
                if isinstance(found[0], News):
                    self._holders.heard(peer, found[0].came, found[0].went)
        except PeerGone as error:
            self._leave(peer)
            self._lose(peer, str(error))

    def _tick(self) -> None:
        """Look who the others are; visit those that are not visited, ask the rest whether they are there."""
        others = self._own.others()
        for peer, lane in list(self._follows.items()):
            if peer not in others:
                self._leave(peer)
                self._holders.lose(peer)
            else:
                self._ask(lane)
        for peer in others:
            if peer not in self._follows:
                with suppress(PeerGone):  # nobody listens there yet, or the keeper is only just starting
                    lane = PeerLane(self._context, self._own, peer, self._visit)
                    self._poller.register(lane.socket, zmq.POLLIN)
                    self._follows[peer] = lane

    def _ask(self, lane: PeerLane) -> None:
        """Is it there?"""
        try:
            if time.monotonic() - lane.heard > _SILENCE_SECONDS:
                raise PeerGone(f"the keeper at {lane.peer.endpoint} has said nothing for {_SILENCE_SECONDS:g} s")
            lane.send(Alive())
        except PeerGone as error:
            self._leave(lane.peer)
            if lane.answered:  # else it may not know us yet, or is only just starting
                self._lose(lane.peer, str(error))

    def _leave(self, peer: KeeperPeer) -> None:
        lane = self._follows.pop(peer)
        self._poller.unregister(lane.socket)
        lane.close()
