"""Wires beyond this machine: encrypted by CURVE (ZeroMQ RFC 26), and open only to peers whose public keys are known (ZAP, RFC 27).

Every process makes its own pair of keys. Secret keys never leave a machine: only public ones are told to others.
"""

import os
from typing import Any, NamedTuple

import msgspec
import zmq

ZmqSocket = zmq.Socket[bytes]


class KeyPair(NamedTuple):
    """Both halves as text of 40 characters (Z85)."""

    public: bytes
    secret: bytes


def new_keys() -> KeyPair:
    """A new pair."""
    return KeyPair(*zmq.curve_keypair())


class PeerKeys(msgspec.Struct, frozen=True):
    """What the side that connects has to know: its own pair, and whom it will find."""

    public: str
    secret: str
    server: str

    def encode(self) -> bytes:
        """For a pipe to a child; a command line is public."""
        return msgspec.json.encode(self)

    def apply(self, socket: ZmqSocket) -> None:
        """Speak to this server only, and prove who we are; before the socket connects."""
        socket.curve_publickey, socket.curve_secretkey = self.public.encode(), self.secret.encode()
        socket.curve_serverkey = self.server.encode()


def peer_keys(own: KeyPair, server: bytes) -> PeerKeys:
    """Those of a process with the pair `own` that connects to the one with the public key `server`."""
    return PeerKeys(own.public.decode(), own.secret.decode(), server.decode())


def read_keys(descriptor: str) -> PeerKeys:
    """What was written to the pipe of this number.

    Raises:
        ValueError: it is something else.
    """
    with os.fdopen(int(descriptor), "rb") as pipe:
        return msgspec.json.decode(pipe.read(), type=PeerKeys)


class Guard:
    """The side that listens: one pair of keys, and who may connect to which of its sockets.

    A stranger is refused in the handshake, before any message of it is read. A thread checks keys, as libzmq asks for it.

    Args:
        keys: its pair; None: a new one.

    Attributes:
        context: of all its sockets.
        public: its public key.
    """

    def __init__(self, keys: KeyPair | None = None) -> None:
        from zmq.auth.thread import ThreadAuthenticator  # a server on its own machine needs none

        self.context: zmq.Context[ZmqSocket] = zmq.Context()
        self._keys = keys or new_keys()
        self.public = self._keys.public
        self._known: dict[str, frozenset[bytes]] = {}
        self._authenticator = ThreadAuthenticator(self.context)
        self._authenticator.start()

    def admit(self, domain: str, keys: frozenset[bytes]) -> None:
        """From now on these, and nobody else, may connect to the sockets of a domain."""
        self._known[domain] = keys
        self._authenticator.configure_curve_callback(domain, credentials_provider=self)

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether this one may; asked by the authenticator, in its thread."""
        return key in self._known.get(domain, frozenset())

    def watch(self, socket: zmq.Socket[Any], domain: str) -> None:
        """Let only those connect that the domain admits; before the socket is bound."""
        self.admit(domain, self._known.get(domain, frozenset()))
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = self._keys
        socket.zap_domain = domain.encode()

    def close(self) -> None:
        """End the thread and all sockets. May be called again."""
        if not self.context.closed:
            self._authenticator.stop()
            self.context.destroy(linger=0)
