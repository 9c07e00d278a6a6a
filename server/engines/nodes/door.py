"""What a node's keeper and engines are given to meet those of other nodes: keys, a socket, a file that says who they are."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from engine.ipc.curve import new_keys
from engine.ipc.peer_list import KeeperPeer, PeerPass, write_peers
from engine.ipc.private_folder import private_folder, remove_folder

_BACKLOG = 128


@contextmanager
def piped(data: bytes) -> Iterator[int]:
    """A descriptor from which a child reads this; a command line is public."""
    read, write = os.pipe()
    try:
        os.write(write, data)
        os.close(write)
        yield read
    finally:
        os.close(read)


class NodeDoor:
    """One of a node, for the life of its agent.

    Args:
        address: IP address of the node.

    Attributes:
        peer: what other nodes are told.

    Raises:
        OSError: the address cannot be listened on, or there is no place for the file.
    """

    def __init__(self, address: str) -> None:
        keys = new_keys()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._listener.bind((address, 0))
            self._listener.listen(_BACKLOG)
            self._folder = private_folder("headrace-")
        except BaseException:
            self._listener.close()
            raise
        host = f"[{address}]" if ":" in address else address
        endpoint = f"tcp://{host}:{self._listener.getsockname()[1]}"
        public, secret = keys.public.decode(), keys.secret.decode()
        self._file = self._folder / "peers.json"
        self._pass = PeerPass(str(self._file), endpoint, public, secret)
        self.peer = KeeperPeer(endpoint, public)

    def meet(self, peers: list[KeeperPeer]) -> None:
        """From now on these are the keepers of this server, this node's among them."""
        write_peers(self._file, peers)

    @contextmanager
    def key(self) -> Iterator[tuple[list[str], list[int]]]:
        """For an engine: arguments of its command line, and descriptors that it has to have."""
        with piped(self._pass.encode()) as read:
            yield ["--peers", str(read)], [read]

    @contextmanager
    def hinges(self) -> Iterator[tuple[list[str], list[int]]]:
        """For the keeper: the same, and the socket that listens."""
        with self.key() as (arguments, descriptors):
            listener = self._listener.fileno()
            yield [*arguments, "--door", str(listener)], [*descriptors, listener]

    def close(self) -> None:
        """Nobody else comes."""
        self._listener.close()
        remove_folder(self._folder)
