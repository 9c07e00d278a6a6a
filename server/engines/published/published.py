"""All that one engine tells only while somebody wants to know."""

from collections.abc import Callable

from scheduler.router.block_index import BlockIndex
from scheduler.types.block_changes import BlockChanges
from scheduler.types.engine_map import EngineMap
from scheduler.types.messages import Command
from server.engines.published.blocks import PublishedBlocks
from server.engines.published.maps import PublishedMap


class Published:
    """One for the life of the server, over all incarnations of the engine.

    Args:
        index: what is known of the engine's blocks.
        send: sends a command to the engine, if there is one.

    Attributes:
        blocks: which KV contents it has.
        map: what it does, drawn for people.
    """

    def __init__(self, index: BlockIndex, send: Callable[[Command], None]) -> None:
        self.blocks = PublishedBlocks(index, send)
        self.map = PublishedMap(send)

    def engine_ready(self) -> None:
        """An incarnation takes commands."""
        self.blocks.engine_ready()
        self.map.engine_ready()

    def engine_ended(self) -> None:
        """What it told is no longer so."""
        self.blocks.engine_ended()
        self.map.engine_ended()

    def heard(self, event: BlockChanges | EngineMap) -> None:
        """It tells something."""
        if isinstance(event, EngineMap):
            self.map.drawn(event)
        else:
            self.blocks.changed(event)
