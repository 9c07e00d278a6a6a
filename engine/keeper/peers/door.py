"""A keeper's door for engines of other machines: they hear what is in memory here, and may read it. Nobody writes through it.

It is a ROUTER socket that lets in only machines of the same server (`engine/ipc/curve.py`). The disk is not offered: what is read
from there is in memory then.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

import zmq
import zmq.asyncio

from engine.ipc.codec import MessageCodec, ProtocolError
from engine.ipc.curve import Guard, KeyPair
from engine.ipc.peer_list import PeerPass
from engine.keeper.keeper import HOST, Keeper, Nonsense
from engine.keeper.peers.leases import PeerLeases
from engine.keeper.peers.messages import (
    ANSWERS,
    VISITS,
    Alive,
    AnswerMessage,
    Blocks,
    Doubt,
    Fetch,
    GiveBack,
    LendOut,
    News,
    StillHere,
    TurnedAway,
    Visit,
    VisitMessage,
    WasThere,
    Where,
)
from engine.keeper.peers.nixl_memory import NixlMemory
from engine.keeper.records import NOBODY

log = logging.getLogger("headrace.keeper")

_DOMAIN = "keeper"
_LOOK_SECONDS = 1.0  # between two looks who the other machines are
_SOON_SECONDS = 0.1
_PART = 4096  # contents of one message


class PeerDoor:
    """All calls belong to the event loop's thread.

    Args:
        keeper: whose contents are offered.
        own: says who may come.
        listener: descriptor of the socket that listens, which outlives this process; closed with this object.
    """

    def __init__(self, keeper: Keeper, own: PeerPass, listener: int) -> None:
        self._keeper = keeper
        self._own = own
        self._guard = Guard(KeyPair(own.public.encode(), own.secret.encode()))
        self._codec = MessageCodec[AnswerMessage](ANSWERS)
        self._visits = MessageCodec[VisitMessage](VISITS)
        self._socket = zmq.asyncio.Socket(self._guard.context, zmq.ROUTER)
        self._socket.set_hwm(0)
        self._socket.router_mandatory = True  # a visitor that is gone is noticed
        self._socket.use_fd = listener
        self._guard.watch(self._socket, _DOMAIN)
        self._socket.bind(own.endpoint)
        self._leases, self._memory = PeerLeases(keeper), NixlMemory()
        self._serving: asyncio.Task[None] | None = None
        self._offering = asyncio.Lock()
        self._feeds: dict[bytes, asyncio.Task[None]] = {}
        self._tasks = [asyncio.ensure_future(self._answer()), asyncio.ensure_future(self._admit())]

    async def _admit(self) -> None:
        while True:
            self._guard.admit(_DOMAIN, frozenset(peer.key.encode() for peer in self._own.others()))
            await asyncio.sleep(_LOOK_SECONDS)

    async def _answer(self) -> None:
        while True:
            visitor, *messages = await self._socket.recv_multipart()
            try:
                for message in messages:
                    await self._obey(visitor, self._visits.decode(message))
            except (ProtocolError, Nonsense) as error:
                await self._send(visitor, TurnedAway(reason=str(error)))

    async def _obey(self, visitor: bytes, message: VisitMessage) -> None:
        match message:
            case Visit(follows=True):
                self._feeds[visitor] = asyncio.ensure_future(self._feed(visitor, message))
            case Visit():
                self._keeper.expect_blocks(message.fingerprint, message.block_bytes)
            case Fetch():
                copies = self._keeper.copies(message.block_keys)
                there = [copy is not None for copy in copies]
                await self._send(visitor, Blocks(there=there), [copy for copy in copies if copy is not None])
            case Where():
                self._tasks.append(asyncio.ensure_future(self._tell_where(visitor)))
            case LendOut():
                await self._send(visitor, self._leases.lend(message.block_keys))
                if self._serving is None or self._serving.done():
                    self._serving = asyncio.ensure_future(self._serve_reads())
            case GiveBack():
                if self._leases.end(message.lease):
                    await self._send(visitor, WasThere())
            case Doubt():
                self._keeper.drop(HOST, message.keys)
            case Alive():
                await self._send(visitor, StillHere())

    async def _feed(self, visitor: bytes, visit: Visit) -> None:
        """Tell it what is there, and of changes, until it is gone."""
        while not self._keeper.divided:  # no engine of this machine has come yet
            await asyncio.sleep(_SOON_SECONDS)
        subscriber = self._keeper.subscribe(NOBODY)
        try:
            self._keeper.expect_blocks(visit.fingerprint, visit.block_bytes)
            contents = self._keeper.contents(HOST)
            for begin in range(0, len(contents), _PART):
                await self._send(visitor, News(came=contents[begin : begin + _PART]))
            while visitor in self._feeds:
                for changed in await subscriber.changes():
                    if changed.tier == HOST:
                        await self._send(visitor, News(came=changed.came, went=changed.went))
        except Nonsense as error:
            await self._send(visitor, TurnedAway(reason=str(error)))
        finally:
            self._keeper.unsubscribe(subscriber)

    async def _tell_where(self, visitor: bytes) -> None:
        """Offer the memory; the first time that takes seconds, in which others are answered."""
        async with self._offering:
            here = await asyncio.to_thread(self._memory.here, self._keeper.memory)
        await self._send(visitor, here)

    async def _serve_reads(self) -> None:
        """Let the transfer engine work for as long as somebody reads."""
        while len(self._leases):
            if self._memory.offered:
                self._memory.progress()
            await asyncio.sleep(0)

    async def _send(self, visitor: bytes, message: AnswerMessage, blocks: Sequence[bytes] = ()) -> None:
        try:
            await self._socket.send_multipart([visitor, self._codec.encode(message), *blocks])
        except zmq.ZMQError:  # it is gone
            self._feeds.pop(visitor, None)

    async def close(self) -> None:
        """Let nobody in any more."""
        tasks = [*self._tasks, *self._feeds.values()]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._leases.close()  # which ends `_serve_reads`
        self._socket.close(linger=0)
        self._guard.close()
