"""Blocks of other machines, read by NIXL where they lie instead of being sent."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from engine.ipc.peer_list import KeeperPeer, PeerPass
from engine.keeper.peers.lane import PeerGone, PeerLane
from engine.keeper.peers.messages import GiveBack, Here, LendOut, LentOut, Visit, WasThere, Where
from engine.keeper.peers.nixl_memory import NixlReader, ReadFailed
from engine.keeper.peers.store import PeerStore
from scheduler.types.block_hash import BlockKey

Answer = TypeVar("Answer", Here, LentOut, WasThere)

_AT_ONCE = 32  # blocks of one read
_SECONDS = 20.0  # for an answer: the first one imports NIXL there


class NixlPeerStore(PeerStore):
    """As `PeerStore`. A keeper lends slots, they are read, and that it takes them back says that they were lent all the time."""

    def __init__(self, own: PeerPass, visit: Visit) -> None:
        self._reader = NixlReader(_AT_ONCE, visit.block_bytes)
        self._places: dict[KeeperPeer, Here] = {}
        super().__init__(own, visit)

    def _fetched(
        self, peer: KeeperPeer, block_keys: Sequence[BlockKey], places: Sequence[int]
    ) -> Iterator[tuple[int, "memoryview[int]"]]:
        lane = self._lane(peer)
        if peer not in self._places:
            here = self._places[peer] = _asked(lane, Where(), Here)
            self._reader.meet(here)
        for begin in range(0, len(places), _AT_ONCE):
            part = places[begin : begin + _AT_ONCE]
            lent = _asked(lane, LendOut(block_keys=[block_keys[place] for place in part]), LentOut)
            there = [(place, slot) for place, slot in zip(part, lent.slots, strict=True) if slot >= 0]
            try:
                self._reader.read(self._places[peer], [slot for _, slot in there])
            except ReadFailed as error:
                raise PeerGone(f"the keeper at {peer.endpoint}: {error}") from error
            _asked(lane, GiveBack(lease=lent.lease), WasThere)
            for row, (place, _) in enumerate(there):
                yield place, self._reader.rows[row].data

    def _give_up(self, peer: KeeperPeer, why: str) -> None:
        if (here := self._places.pop(peer, None)) is not None:
            self._reader.forget(here)
        super()._give_up(peer, why)


def _asked(lane: PeerLane, message: Where | LendOut | GiveBack, kind: type[Answer]) -> Answer:
    lane.send(message)
    answer, _ = lane.next(_SECONDS)
    if not isinstance(answer, kind):
        raise PeerGone(f"the keeper at {lane.peer.endpoint} answered {type(answer).__name__}")
    return answer
