"""What one engine tells of its KV blocks: kept for the router, and passed on to whoever subscribes.

An engine tells nothing unless somebody wants to know: the router of a server with several engines, or a subscriber.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from scheduler.router.block_index import BlockIndex
from scheduler.types.block_changes import BlockChanges, StoredBlocks
from scheduler.types.messages import Command, PublishBlocks

_MOST_WAITING = 256  # changes that a subscriber may be behind; one that reads more slowly is told everything anew
_MOST_AT_ONCE = 1024  # blocks of what is told anew, in one part


class PublishedBlocks:
    """One for the life of the server, over all incarnations of the engine. All calls belong to the event loop's thread.

    Args:
        index: what is known of the engine's blocks.
        send: sends a command to the engine, if there is one.
    """

    def __init__(self, index: BlockIndex, send: Callable[[Command], None]) -> None:
        self.index = index
        self._send = send
        self._kept = False
        self._subscriptions: set[BlockSubscription] = set()

    @property
    def wanted(self) -> bool:
        """Whether anybody wants to know."""
        return self._kept or bool(self._subscriptions)

    def keep(self) -> None:
        """Want to know from now on, for the router."""
        self._ask(lambda: setattr(self, "_kept", True))

    def engine_ready(self) -> None:
        """An incarnation takes commands: it tells from its beginning on."""
        if self.wanted:
            self._send(PublishBlocks())

    def engine_ended(self) -> None:
        """What it held is gone."""
        self.index.clear()
        for subscription in self._subscriptions:
            subscription.begin_anew()

    def changed(self, changes: BlockChanges) -> None:
        """Contents came and went."""
        if not self.wanted:  # under way when the last one left
            return
        self.index.change(changes)
        for subscription in self._subscriptions:
            subscription.push(changes)

    def subscribe(self) -> "BlockSubscription":
        """What is known, then what changes. To be closed."""
        subscription = BlockSubscription(self)
        self._ask(lambda: self._subscriptions.add(subscription))
        return subscription

    def unsubscribe(self, subscription: "BlockSubscription") -> None:
        """It is closed."""
        self._subscriptions.discard(subscription)
        if not self.wanted:
            self.index.clear()
            self._send(PublishBlocks(publish=False))

    def _ask(self, begin: Callable[[], None]) -> None:
        asked = self.wanted
        begin()
        if not asked:
            self._send(PublishBlocks())


class BlockSubscription:
    """An `AsyncIterator[BlockChanges]` for one reader: first all that is known, in parts, the first of them `anew`; then changes.

    If an engine starts again, or the reader is too slow, it begins anew. It never ends by itself.
    """

    def __init__(self, blocks: PublishedBlocks) -> None:
        self._blocks = blocks
        self._waiting: deque[BlockChanges] = deque(snapshot(blocks.index))
        self._arrived = asyncio.Event()

    def push(self, changes: BlockChanges) -> None:
        """Contents came and went, and are in the index."""
        if len(self._waiting) >= _MOST_WAITING:
            self.begin_anew()
        else:
            self._waiting.append(changes)
            self._arrived.set()

    def begin_anew(self) -> None:
        """What waits is of no use any more; tell what is known now."""
        self._waiting = deque(snapshot(self._blocks.index))
        self._arrived.set()

    def __aiter__(self) -> "BlockSubscription":
        return self

    async def __anext__(self) -> BlockChanges:
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    def close(self) -> None:
        """Nobody reads any more."""
        self._blocks.unsubscribe(self)


def snapshot(index: BlockIndex) -> Iterator[BlockChanges]:
    """All that is known of an engine's blocks, in parts, the first of which is `anew`."""
    part, count = BlockChanges(anew=True), 0
    for tier, name, block in index.contents():
        if not part.stored or part.stored[-1].tier != tier:
            part.stored.append(StoredBlocks(tier=tier, names=[], tokens=[], parents=[]))
        stored = part.stored[-1]
        stored.names.append(name)
        stored.tokens.append(block.tokens)
        stored.parents.append(block.parent)
        count += 1
        if count == _MOST_AT_ONCE:
            yield part
            part, count = BlockChanges(), 0
    if count or part.anew:
        yield part
