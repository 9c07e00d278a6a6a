"""Which blocks may be taken, and which of them one sequence gets: those that lie together, with room to grow behind them.

    table of A         room of A   open         table of B    room of B   open
    | 7 | 8 | 9 | 10 | 11 . . 14 | 15 . . 20 | 21 | 22 | 23 | 24 . . 29 | 30 . .

A sequence grows by single blocks in turn with all the others. Without rooms each of them takes the place right behind
another's table, and no table has two blocks in a row. Rooms are bounded in length and in number, and given up before anything
has to wait for a block.

What belongs here: numbers of blocks. Never: owners, contents.
"""

from collections.abc import Iterable, Iterator, KeysView

from scheduler.kv.free_extents import FreeExtents

_ROOM = 8  # blocks of a room: at 32 tokens a block, an answer of some hundred tokens
_ROOM_SHARE = 16  # one in so many blocks may lie in rooms


class FreeBlocks:
    """The blocks of a pool that may be taken: each is open to all or lies in the room behind a used one."""

    def __init__(self, blocks: int) -> None:
        self._open = FreeExtents(blocks)
        self._rooms: dict[int, int] = {}  # used block: one past the end of the room that begins behind it
        self._in_rooms = 0
        self._room_limit = blocks // _ROOM_SHARE

    def __len__(self) -> int:
        return len(self._open) + self._in_rooms

    def __iter__(self) -> Iterator[int]:
        yield from self._open
        for tail, end in self._rooms.items():
            yield from range(tail + 1, end)

    @property
    def open(self) -> int:
        """Blocks outside of rooms."""
        return len(self._open)

    @property
    def room(self) -> int:
        """How long the next room can be."""
        return max(0, min(_ROOM, self._room_limit - self._in_rooms))

    @property
    def tails(self) -> KeysView[int]:
        """The used blocks that have a room behind them."""
        return self._rooms.keys()

    def add(self, block_ids: Iterable[int]) -> None:
        """These may be taken from now on. None of them may be yet."""
        self._open.add_all(block_ids)

    def discard(self, block_id: int) -> None:
        """This one may not be taken any more. Raises KeyError if it might not be before."""
        if block_id not in self._open:
            self.close(next(tail for tail in range(block_id - 1, block_id - _ROOM - 1, -1) if tail in self._rooms))
        self._open.take(block_id, block_id + 1)

    def take(self, count: int, after: int | None = None) -> list[int]:
        """Take so many blocks, in few runs, and keep room behind the last one. At least so many must be there.

        Args:
            count: how many.
            after: a used block; what follows it directly is taken first.
        """
        if not count:
            return []
        if count == 1 and after in self._rooms:
            return [self._step_into_room(after)]
        taken: list[int] = []
        if after is not None:
            self.close(after)
            self._take(after + 1, count, taken)
        while len(taken) < count:
            while not self._open:
                self.close(next(iter(self._rooms)))
            rest = count - len(taken)
            self._take(self._open.find(rest + self.room), rest, taken)
        self._keep_room(taken[-1])
        return taken

    def close(self, tail: int) -> None:
        """The room behind this block, if it has one, is open to all."""
        end = self._rooms.pop(tail, tail + 1)
        self._in_rooms -= end - tail - 1
        self._open.add(tail + 1, end)

    def _step_into_room(self, tail: int) -> int:
        end = self._rooms.pop(tail)
        self._in_rooms -= 1
        if tail + 2 < end:
            self._rooms[tail + 1] = end
        return tail + 1

    def _take(self, begin: int, count: int, taken: list[int]) -> None:
        """As many of the open ids from `begin` on as there are, in one run."""
        end = min(begin + count, self._open.end_of(begin))
        if begin < end:
            self._open.take(begin, end)
            taken += range(begin, end)

    def _keep_room(self, tail: int) -> None:
        end = min(tail + 1 + self.room, self._open.end_of(tail + 1))
        if tail + 1 < end:
            self._open.take(tail + 1, end)
            self._rooms[tail] = end
            self._in_rooms += end - tail - 1
