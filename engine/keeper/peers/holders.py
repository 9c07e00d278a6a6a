"""Which other keepers have which contents, as far as they have told us."""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence

from engine.ipc.peer_list import KeeperPeer
from scheduler.types.block_hash import BlockKey
from scheduler.types.transfers import TierChanges


class Holders:
    """Safe for threads.

    Attributes:
        tell: called, without the lock, when `changes` has something to say.
    """

    def __init__(self) -> None:
        self.tell: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._peers: dict[bytes, dict[KeeperPeer, None]] = {}
        self._came: dict[bytes, tuple[BlockKey, int]] = {}
        self._went: dict[bytes, None] = {}

    def heard(self, peer: KeeperPeer, came: Sequence[tuple[BlockKey, int]], went: Sequence[bytes]) -> None:
        """A keeper has these contents, and has those no more."""
        with self._lock:
            for key in went:
                self._gone(peer, key)
            for block_key, size in came:
                self._peers.setdefault(block_key.hash, {})[peer] = None
                self._came[block_key.hash] = (block_key, size)
                self._went.pop(block_key.hash, None)
        self.tell()

    def lose(self, peer: KeeperPeer) -> None:
        """It has nothing for us any more."""
        with self._lock:
            for key in [key for key, peers in self._peers.items() if peer in peers]:
                self._gone(peer, key)
        self.tell()

    def dropped(self, keys: Sequence[bytes]) -> dict[KeeperPeer, list[bytes]]:
        """Nobody shall have these contents any more. Returns those whom to tell."""
        told: defaultdict[KeeperPeer, list[bytes]] = defaultdict(list)
        with self._lock:
            for key in keys:
                for peer in list(self._peers.get(key, ())):
                    told[peer].append(key)
                    self._gone(peer, key)
        return dict(told)

    def places(self, block_keys: Sequence[BlockKey]) -> dict[KeeperPeer, list[int]]:
        """Whom to ask for which of these contents, by their places; the fewest keepers, since neighbours lie together."""
        asked: dict[KeeperPeer, list[int]] = {}
        with self._lock:
            for place, block_key in enumerate(block_keys):
                peers = self._peers.get(block_key.hash)
                if peers:
                    peer = next((peer for peer in asked if peer in peers), next(iter(peers)))
                    asked.setdefault(peer, []).append(place)
        return asked

    def changes(self) -> TierChanges:
        """What came and went since the last call."""
        with self._lock:
            changes = TierChanges(list(self._came.values()), list(self._went))
            self._came.clear()
            self._went.clear()
        return changes

    def _gone(self, peer: KeeperPeer, key: bytes) -> None:
        peers = self._peers.get(key)
        if peers is None or peer not in peers:
            return
        del peers[peer]
        if not peers:
            del self._peers[key]
            self._came.pop(key, None)
            self._went[key] = None
