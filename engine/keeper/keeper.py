"""The keeper: answers engines on a Unix socket, each connection by itself, and owns the books that they share.

Everything but reading and writing the disk happens in one thread, the event loop's, so the books need no locks.

What belongs here: connections, and which blocks the slab is for. Never: what is kept and where (`SlabBooks`), bytes of blocks.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from mmap import mmap

from engine.ipc.codec import MessageCodec, ProtocolError
from engine.keeper.books import Lease, SlabBooks
from engine.keeper.messages import (
    REPLIES,
    REQUESTS,
    Commit,
    Contents,
    Done,
    Drop,
    Follow,
    GivenSlots,
    Hello,
    Lend,
    Refused,
    Release,
    Reply,
    Request,
    Reserve,
    There,
    Welcome,
)
from engine.keeper.records import NOBODY, Geometry, Owner, Records
from engine.keeper.subscriber import Subscriber
from engine.keeper.wire import packed, receive
from scheduler.kv.eviction import eviction_of
from scheduler.types.block_hash import HASH_BYTES, BlockKey

log = logging.getLogger("headrace.keeper")

HOST = "host"  # the tier in the slab
_PART = 4096  # contents of one message


class Nonsense(Exception):
    """An engine asks for what makes no sense; the sentence says why."""


class Keeper:
    """The books of one machine.

    Args:
        descriptor: of the shared memory, which grows to its size with the first engine.
        capacity: bytes of blocks that it may hold.
        eviction: name of the policy.
    """

    def __init__(self, descriptor: int, capacity: int, eviction: str) -> None:
        self._descriptor = descriptor
        self._capacity = capacity
        self._eviction = eviction
        self._books: SlabBooks | None = None
        self._geometry: Geometry | None = None
        self._subscribers: set[Subscriber] = set()
        self._engines = 0  # connections that were welcomed

    async def serve(self, listener: socket.socket) -> asyncio.Server:
        """Answer whoever connects."""
        return await asyncio.start_unix_server(self._connected, sock=listener)

    @property
    def books(self) -> SlabBooks:
        """Those of the present engines.

        Raises:
            Nonsense: none has said hello yet.
        """
        if self._books is None:
            raise Nonsense("the first message must be Hello")
        return self._books

    def welcome(self, hello: Hello) -> Welcome:
        """Take an engine in. The first one decides what the slab is for.

        Raises:
            Nonsense: its blocks are not those of the engines that are here.
        """
        slots = self._capacity // max(1, hello.block_bytes)
        geometry = Geometry(hello.fingerprint, slots, hello.block_bytes, hello.block_tokens)
        if self._geometry != geometry:
            if self._engines:
                raise Nonsense(f"it keeps KV blocks of another kind: {_difference(self._geometry, geometry)}")
            self._divide(geometry)
        if hello.fresh:
            self.books.settled(Owner(hello.pid, hello.client))
        self._engines += 1
        return Welcome(slots=geometry.slots, offset=geometry.offset)

    def goodbye(self) -> None:
        """A connection that was welcomed has ended."""
        self._engines -= 1

    def subscribe(self, owner: Owner) -> Subscriber:
        """Whom to tell of changes from now on."""
        subscriber = Subscriber(owner)
        self._subscribers.add(subscriber)
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """It does not listen any more."""
        self._subscribers.discard(subscriber)

    def _divide(self, geometry: Geometry) -> None:
        """Use the slab for these blocks: with what is there if it was for them before."""
        if geometry.slots < 1:
            raise Nonsense(f"a block takes {geometry.block_bytes} bytes, and there is room for {self._capacity}")
        if os.fstat(self._descriptor).st_size < geometry.size:
            os.ftruncate(self._descriptor, geometry.size)
        records = Records(mmap(self._descriptor, geometry.size), geometry)
        policy = eviction_of(self._eviction, geometry.slots)
        self._books, self._geometry = SlabBooks(records, policy, self._tell), geometry
        if len(self._books) or self._books.damaged:
            log.info(
                "found %d KV blocks in memory, dropped %d that were damaged", len(self._books), self._books.damaged
            )

    def _tell(self, block_key: BlockKey, size: int, owner: Owner) -> None:
        for subscriber in self._subscribers:
            subscriber.tell(HOST, block_key, size, owner)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(self)
        try:
            await session.run(reader, writer)
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass  # the engine has closed, or has ended; or the keeper ends
        except (Nonsense, ProtocolError) as error:
            log.warning("refused an engine: %s", error)
            writer.write(packed(session.codec, Refused(reason=str(error))))
        finally:
            session.end()
            writer.close()


class Session:
    """One connection of an engine, with the lease that it has."""

    def __init__(self, keeper: Keeper) -> None:
        self.codec = MessageCodec[Reply](REPLIES)
        self._requests = MessageCodec[Request](REQUESTS)
        self._keeper = keeper
        self._owner = NOBODY
        self._lease: Lease | None = None

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer until the engine closes.

        Raises:
            IncompleteReadError, OSError: it has.
            Nonsense, ProtocolError: it says what makes no sense.
        """
        while True:
            request = await receive(reader, self._requests)
            if isinstance(request, Follow):
                await self._feed(reader, writer)
                return
            for reply in self._answers(request):
                writer.write(packed(self.codec, reply))
            await writer.drain()

    def end(self) -> None:
        """Give back what it has."""
        if self._lease is not None:
            self._keeper.books.end(self._lease)
        if self._owner != NOBODY:
            self._keeper.goodbye()

    def _answers(self, request: Request) -> Iterator[Reply]:
        match request:
            case Hello():
                if self._owner != NOBODY:
                    raise Nonsense("it has said Hello before")
                yield self._keeper.welcome(request)
                self._owner = Owner(request.pid, request.client)
            case Reserve():
                self._lease, slots = self._keeper.books.reserve(self._owner, self._asked(request.block_keys))
                yield GivenSlots(slots=slots)
            case Commit():
                self._keeper.books.commit(self._take_lease(len(request.checksums)), request.checksums)
                yield Done()
            case Lend():
                self._lease, slots = self._keeper.books.lend(self._owner, self._asked(request.block_keys))
                yield GivenSlots(slots=slots)
            case Release():
                self._keeper.books.give_back(self._take_lease())
                yield Done()
            case Drop():
                self._keeper.books.drop(request.keys)
                yield Done()
            case Contents():
                contents = self._keeper.books.contents()
                for begin in range(0, len(contents) + 1, _PART):
                    part = contents[begin : begin + _PART]
                    yield There(contents=part, more=begin + _PART <= len(contents))

    def _asked(self, block_keys: list[BlockKey]) -> list[BlockKey]:
        if self._lease is not None:
            raise Nonsense("it has a lease already")
        if any(len(block_key.token_ids) > self._keeper.books.ids for block_key in block_keys):
            raise Nonsense(f"a block has at most {self._keeper.books.ids} token ids")
        if any(len(block_key.hash) > HASH_BYTES for block_key in block_keys):
            raise Nonsense(f"a hash has at most {HASH_BYTES} bytes")
        return block_keys

    def _take_lease(self, written: int | None = None) -> Lease:
        """Its lease, if it is one over so many slots to be written, or, with None, to be read."""
        lease = self._lease
        if (
            lease is None
            or lease.writes != (written is not None)
            or (lease.writes and written != len(lease.block_keys))
        ):
            raise Nonsense("it has no such lease")
        self._lease = None
        return lease

    async def _feed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Tell of changes until the engine closes."""
        subscriber = self._keeper.subscribe(self._owner)
        closed = asyncio.ensure_future(reader.read(1))
        try:
            writer.write(packed(self.codec, Done()))
            while not closed.done():
                changes = asyncio.ensure_future(subscriber.changes())
                await asyncio.wait({closed, changes}, return_when=asyncio.FIRST_COMPLETED)
                if changes.done():
                    for message in changes.result():
                        writer.write(packed(self.codec, message))
                    await writer.drain()
                else:
                    changes.cancel()
        finally:
            closed.cancel()
            self._keeper.unsubscribe(subscriber)


def _difference(here: Geometry | None, there: Geometry) -> str:
    if here is not None and here.block_bytes != there.block_bytes:
        return f"a block takes {here.block_bytes} bytes, not {there.block_bytes}"
    return f"of {here.fingerprint if here else 'none'}, not of {there.fingerprint}"
