"""What an engine has yet to hear of the others' doings."""

import asyncio

from engine.keeper.messages import Changed
from engine.keeper.records import Owner
from scheduler.types.block_hash import BlockKey


class Subscriber:
    """The changes since they were last taken: of each content the last one only, so that they take no more room than the contents.

    Args:
        owner: the engine, which is not told what it put itself.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._news: dict[str, dict[bytes, tuple[BlockKey, int]]] = {}  # by tier
        self._waiting = asyncio.Event()

    def tell(self, tier: str, block_key: BlockKey, size: int, owner: Owner) -> None:
        """A content takes so many bytes now; 0: it has gone."""
        news = self._news.setdefault(tier, {})
        if size and owner == self._owner:
            news.pop(block_key.hash, None)  # that it went before it knows, or will not miss
        else:
            news[block_key.hash] = (block_key, size)
            self._waiting.set()

    async def changes(self) -> list[Changed]:
        """Wait for changes; one message for each tier that has some."""
        await self._waiting.wait()
        self._waiting.clear()
        news, self._news = self._news, {}
        return [
            Changed(
                tier=tier,
                came=[(block_key, size) for block_key, size in changes.values() if size],
                went=[key for key, (_, size) in changes.items() if not size],
            )
            for tier, changes in news.items()
        ]
