"""A connection of an engine to the keeper of another machine, for one thread at a time."""

import time

import zmq

from engine.ipc.codec import MessageCodec, ProtocolError
from engine.ipc.peer_list import KeeperPeer, PeerPass
from engine.ipc.sockets import connected
from engine.keeper.peers.messages import ANSWERS, VISITS, AnswerMessage, TurnedAway, Visit, VisitMessage


class PeerGone(Exception):
    """The other keeper does not answer, or turns us away; the sentence says which."""


class PeerLane:
    """Connects at once, and says what our blocks are.

    Args:
        context: of the socket.
        own: says who we are.
        peer: the other one.
        visit: what is said first.

    Raises:
        PeerGone: the connection has broken before that could be said.

    Attributes:
        heard: monotonic stamp of the last answer, or of the beginning.
        answered: whether there was any.
    """

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", own: PeerPass, peer: KeeperPeer, visit: Visit
    ) -> None:
        self.peer = peer
        self._codec = MessageCodec[VisitMessage](VISITS)
        self._answers = MessageCodec[AnswerMessage](ANSWERS)
        self.socket = connected(context, zmq.DEALER, peer.endpoint, own.keys_for(peer).apply)
        self.heard = time.monotonic()
        self.answered = False
        try:
            self.send(visit)
        except PeerGone:
            self.close()
            raise

    def send(self, message: VisitMessage) -> None:
        """Send a message; never blocks.

        Raises:
            PeerGone: the connection has broken.
        """
        try:
            self.socket.send(self._codec.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            raise PeerGone(f"the connection to the keeper at {self.peer.endpoint} broke") from None

    def waiting(self) -> "tuple[AnswerMessage, list[zmq.Frame]] | None":
        """The next answer that is here, and the frames that follow it.

        Raises:
            PeerGone: it turns us away.
        """
        try:
            message, *blocks = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        self.heard, self.answered = time.monotonic(), True
        try:
            answer = self._answers.decode(message.bytes)
        except ProtocolError as error:
            raise PeerGone(f"the keeper at {self.peer.endpoint}: {error}") from error
        if isinstance(answer, TurnedAway):
            raise PeerGone(f"the keeper at {self.peer.endpoint} has nothing for us: {answer.reason}")
        return answer, blocks

    def next(self, seconds: float) -> "tuple[AnswerMessage, list[zmq.Frame]]":
        """The next answer.

        Raises:
            PeerGone: none comes within so many seconds, or it turns us away.
        """
        until = time.monotonic() + seconds
        while self.socket.poll(max(0, int(1000 * (until - time.monotonic())))):
            found = self.waiting()
            if found is not None:
                return found
        raise PeerGone(f"the keeper at {self.peer.endpoint} has not answered for {seconds:g} s")

    def close(self) -> None:
        """End it."""
        self.socket.close(linger=0)
