"""An engine's side of the keeper: connections, and what came and went there.

Each call has a connection to itself while it lasts; connections are kept for the next call. Whatever goes wrong on one of them
ends all of them: then the keeper is lost until `connect` succeeds again, which waits for the calls that are under way to end. So a
keeper that hears a fresh `Hello` knows that nothing is copied on behalf of an earlier one.
"""

import contextlib
import os
import secrets
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from engine.ipc.codec import MessageCodec, ProtocolError
from engine.ipc.keeper_address import KeeperAddress
from engine.keeper.messages import (
    REPLIES,
    REQUESTS,
    Changed,
    Contents,
    DiskLost,
    Done,
    Follow,
    Hello,
    Refused,
    Reply,
    Request,
    There,
    Welcome,
)
from engine.keeper.wire import Line, packed
from engine.kv_store.store import Kept, StoreLost, StoreRefused
from scheduler.types.transfers import TierChanges

Answer = TypeVar("Answer", bound=Reply)

SECONDS = 5.0  # for an answer: the keeper waits for nothing but its disk
HELLO_SECONDS = 60.0  # for the first one: it looks at everything in memory and on disk before


@dataclass(slots=True)
class _Tier:
    """What is known of a tier's changes."""

    came: dict[bytes, Kept]
    went: dict[bytes, None]
    tell: Callable[[], None]
    stale: bool = False  # the keeper was lost since its contents were last read


class DiskFailed(StoreLost):
    """The keeper is there, and its disk tier is lost."""


class Lane:
    """A connection, for one thread at a time."""

    def __init__(self, line: Line[Reply]) -> None:
        self.line = line
        self._codec = MessageCodec[Request](REQUESTS)

    def ask(self, request: Request, kind: type[Answer]) -> Answer:
        """Send a request and wait for its answer, which is of this kind.

        Raises:
            OSError, EOFError, ProtocolError: none came.
            DiskFailed: it is about the disk tier, which cannot be used.
            StoreRefused: the keeper wants nothing to do with this engine.
        """
        self.line.send(packed(self._codec, request))
        return self.next(kind)

    def next(self, kind: type[Answer]) -> Answer:
        """The next message."""
        reply = self.line.receive()
        if isinstance(reply, kind):
            return reply
        if isinstance(reply, DiskLost):
            raise DiskFailed(reply.reason)
        if isinstance(reply, Refused) and reply.final:
            raise StoreRefused(reply.reason)
        reason = reply.reason if isinstance(reply, Refused) else f"it answered {type(reply).__name__}"
        raise ProtocolError(reason)


class KeeperClient:
    """The keeper as one engine sees it. Calls may come from several threads.

    Args:
        address: where it is.
        hello: what the engine says of its blocks.
        seconds: for an answer.
    """

    def __init__(self, address: KeeperAddress, hello: Hello, seconds: float = SECONDS) -> None:
        self.address = address
        self._hello = replace(hello, pid=os.getpid(), client=secrets.randbits(63) + 1)
        self._seconds = seconds
        self._lock = threading.Condition()
        self._connecting = threading.Lock()
        self._idle: list[Lane] = []
        self._busy = 0  # calls under way
        self._lost = "not connected"
        self._closed = False
        self._welcome: Welcome | None = None
        self._feed: Lane | None = None
        self._listening: threading.Thread | None = None
        self._tiers: defaultdict[str, _Tier] = defaultdict(lambda: _Tier({}, {}, lambda: None))

    def connect(self) -> Welcome:
        """Say hello, for the first time or anew; nothing if that was done. Returns where blocks lie.

        Raises:
            StoreLost: the keeper is not there, does not answer, or refuses.
        """
        with self._connecting:
            with self._lock:
                if not self._lost and self._welcome is not None:
                    return self._welcome
                if not self._lock.wait_for(lambda: not self._busy, self._seconds):
                    raise StoreLost("calls to the keeper are still under way")
            with self._telling_of_loss():
                feed, welcome = self._opened(fresh=True)
                try:
                    feed.ask(Follow(), Done)
                except BaseException:
                    feed.line.close()
                    raise
                feed.line.wait_at_most(None)
            with self._lock:
                if self._closed:
                    feed.line.close()
                    raise StoreLost("it is closed")
                self._lost, self._welcome, self._feed = "", welcome, feed
                self._listening = threading.Thread(target=self._listen, args=[feed], name="kv-keeper", daemon=True)
                self._listening.start()
                return welcome

    @contextlib.contextmanager
    def lane(self, seconds: float | None = None) -> Iterator[Lane]:
        """A connection for this thread, where an answer may take that long.

        Raises:
            StoreLost: there is none, or it broke inside the `with`.
        """
        lane = self._take()
        lane.line.wait_at_most(seconds or self._seconds)
        try:
            with self._telling_of_loss():
                yield lane
        except BaseException as error:
            whole = isinstance(error, DiskFailed) or not isinstance(error, StoreLost)
            self._give_back(lane, whole=whole and isinstance(error, Exception))
            raise
        self._give_back(lane, whole=True)

    def contents(self, tier: str) -> list[Kept]:
        """What is in a tier, least recently used first."""
        kept, more = list[Kept](), True
        with self._lock:
            self._tiers[tier].stale = False
        with self.lane() as lane:
            part = lane.ask(Contents(tier=tier), There)
            while more:
                kept += [Kept(block_key, size) for block_key, size in part.contents]
                more = part.more
                if more:
                    part = lane.next(There)
        return kept

    def changes(self, tier: str) -> TierChanges:
        """What came and went in a tier since the last call.

        Raises:
            StoreLost: the keeper is lost, or was since the tier's contents were read.
        """
        with self._lock:
            found = self._tiers[tier]
            if self._lost or found.stale:
                raise StoreLost(self._lost or "the keeper of the KV tiers was lost and is back")
            changes = TierChanges([(each.block_key, each.size) for each in found.came.values()], list(found.went))
            found.came.clear()
            found.went.clear()
            return changes

    def on_changes(self, tier: str, tell: Callable[[], None]) -> None:
        """Call this, from any thread, when there are changes in a tier, or the keeper is lost."""
        with self._lock:
            self._tiers[tier].tell = tell

    def close(self) -> None:
        """End all connections. Later calls raise StoreLost."""
        with self._lock:
            self._closed = True
            self._lose("it is closed")
            listening = self._listening
        if listening is not None:
            listening.join()

    # --- connections ---

    def _opened(self, *, fresh: bool) -> tuple[Lane, Welcome]:
        lane = Lane(Line(self.address.socket, MessageCodec[Reply](REPLIES), HELLO_SECONDS))
        try:
            return lane, lane.ask(replace(self._hello, fresh=fresh), Welcome)
        except BaseException:
            lane.line.close()
            raise

    def _take(self) -> Lane:
        with self._lock:
            if self._lost:
                raise StoreLost(self._lost)
            self._busy += 1
            if self._idle:
                return self._idle.pop()
        try:
            with self._telling_of_loss():
                return self._opened(fresh=False)[0]
        except BaseException:
            with self._lock:
                self._busy -= 1
                self._lock.notify_all()
            raise

    def _give_back(self, lane: Lane, *, whole: bool) -> None:
        with self._lock:
            if whole and not self._lost:
                self._idle.append(lane)
            else:
                lane.line.close()
            self._busy -= 1
            self._lock.notify_all()

    @contextlib.contextmanager
    def _telling_of_loss(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, ProtocolError) as error:
            reason = f"the keeper of the KV tiers: {error}"
            with self._lock:
                self._lose(reason)
            raise StoreLost(reason) from error

    def _lose(self, reason: str) -> None:
        """With the lock: end what is idle; what is busy notices by itself, or ends well."""
        self._lost = self._lost or reason
        for tier in self._tiers.values():
            tier.stale = True
            tier.came.clear()
            tier.went.clear()
        while self._idle:
            self._idle.pop().line.close()
        if self._feed is not None:
            self._feed.line.cut()
            self._feed = None

    # --- in the thread that listens ---

    def _listen(self, feed: Lane) -> None:
        try:
            with self._telling_of_loss():
                while True:
                    self._hear(feed.next(Changed))
        except StoreLost:
            pass
        finally:
            feed.line.close()
        with self._lock:
            told = [] if self._closed else [tier.tell for tier in self._tiers.values()]
        for tell in told:
            tell()

    def _hear(self, changed: Changed) -> None:
        with self._lock:
            tier = self._tiers[changed.tier]
            for key in changed.went:
                tier.came.pop(key, None)
                tier.went[key] = None
            for block_key, size in changed.came:
                tier.came[block_key.hash] = Kept(block_key, size)
            tell = tier.tell
        tell()
