"""Connections of engines: what each asks for, the lease that it has, and what ends with it."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator

from engine.ipc.codec import MessageCodec, ProtocolError
from engine.keeper.books import Lease
from engine.keeper.keeper import Keeper, Nonsense
from engine.keeper.messages import (
    REPLIES,
    REQUESTS,
    Asked,
    Commit,
    Contents,
    DiskLost,
    Done,
    Drop,
    Follow,
    GivenSlots,
    Hello,
    Keep,
    Lend,
    Look,
    Read,
    Refused,
    Release,
    Reply,
    Request,
    Reserve,
    Sizes,
    There,
    Write,
)
from engine.keeper.records import NOBODY, Owner
from engine.keeper.wire import packed, receive
from engine.kv_store.store import StoreLost, StoreRefused
from scheduler.types.block_hash import HASH_BYTES, BlockKey

log = logging.getLogger("headrace.keeper")

_PART = 4096  # contents of one message


async def serve(keeper: Keeper, listener: socket.socket) -> asyncio.Server:
    """Answer whoever connects."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(keeper)
        try:
            await session.run(reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            pass  # the engine has closed, or has ended
        except asyncio.CancelledError:  # the keeper ends
            writer.transport.abort()
        except (Nonsense, ProtocolError, StoreRefused) as error:
            log.warning("refused an engine: %s", error)
            writer.write(packed(session.codec, Refused(reason=str(error), final=isinstance(error, StoreRefused))))
        finally:
            session.end()
            writer.close()

    return await asyncio.start_unix_server(connected, sock=listener)


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
            StoreRefused: it must not start like this.
        """
        while True:
            request = await receive(reader, self._requests)
            if isinstance(request, Follow):
                await self._feed(reader, writer)
                return
            try:
                async for reply in self._answers(request):
                    writer.write(packed(self.codec, reply))
            except StoreLost as error:
                writer.write(packed(self.codec, DiskLost(reason=str(error))))
            await writer.drain()

    def end(self) -> None:
        """Give back what it has."""
        if self._lease is not None:
            self._keeper.books.end(self._lease)
        if self._owner != NOBODY:
            self._keeper.goodbye()

    async def _answers(self, request: Request) -> AsyncIterator[Reply]:
        match request:
            case Hello():
                if self._owner != NOBODY:
                    raise Nonsense("it has said Hello before")
                welcome = await self._keeper.welcome(request)
                self._owner = Owner(request.pid, request.client)
                yield welcome
            case Reserve():
                self._lease, slots = self._keeper.books.reserve(self._owner, self._asked(request.block_keys))
                yield GivenSlots(slots=slots)
            case Commit():
                self._keeper.books.commit(self._take_lease(len(request.checksums)), request.checksums)
                yield Done()
            case Lend():
                yield self._lent(self._asked(request.block_keys))
            case Read():
                await self._keeper.fetch(self._asked(request.block_keys))
                yield self._lent(request.block_keys)
            case Write():
                try:
                    sizes = await self._keeper.write(self._checked_lease())
                finally:
                    self._keeper.books.give_back(self._take_lease())
                yield Sizes(sizes=sizes)
            case Release():
                self._keeper.books.give_back(self._take_lease())
                yield Done()
            case Contents():
                for part in self._parts(request.tier):
                    yield part
            case _:
                await self._obey(request)
                yield Done()

    async def _obey(self, request: Request) -> None:
        """What concerns no lease, and is done or not."""
        match request:
            case Look():
                await self._keeper.look()
            case Keep():
                self._keeper.pin(request.tier, request.keys, request.until)
            case Asked():
                self._keeper.on_lookup(request.tier, request.keys)
            case Drop():
                self._keeper.drop(request.tier, request.keys)
            case _:
                raise Nonsense(f"{type(request).__name__} is out of place")

    def _parts(self, tier: str) -> Iterator[There]:
        contents = self._keeper.contents(tier)
        for begin in range(0, len(contents) + 1, _PART):
            part = contents[begin : begin + _PART]
            yield There(contents=part, more=begin + _PART <= len(contents))

    def _lent(self, block_keys: list[BlockKey]) -> GivenSlots:
        self._lease, slots = self._keeper.books.lend(self._owner, block_keys)
        return GivenSlots(slots=slots)

    def _asked(self, block_keys: list[BlockKey]) -> list[BlockKey]:
        if self._lease is not None:
            raise Nonsense("it has a lease already")
        if any(len(block_key.token_ids) > self._keeper.books.ids for block_key in block_keys):
            raise Nonsense(f"a block has at most {self._keeper.books.ids} token ids")
        if any(len(block_key.hash) > HASH_BYTES for block_key in block_keys):
            raise Nonsense(f"a hash has at most {HASH_BYTES} bytes")
        return block_keys

    def _take_lease(self, written: int | None = None) -> Lease:
        lease = self._checked_lease(written)
        self._lease = None
        return lease

    def _checked_lease(self, written: int | None = None) -> Lease:
        """Its lease, if it is one over so many slots to be written, or, with None, to be read."""
        lease = self._lease
        if (
            lease is None
            or lease.writes != (written is not None)
            or (lease.writes and written != len(lease.block_keys))
        ):
            raise Nonsense("it has no such lease")
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
