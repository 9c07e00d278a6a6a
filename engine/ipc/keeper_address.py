"""Where a server's keeper is: what engines are told of it on their command lines."""

import msgspec


class KeeperAddress(msgspec.Struct, frozen=True):
    """Both belong to the server's process, so that they outlive the keeper's.

    Attributes:
        socket: path of the Unix socket that the keeper listens on.
        slab: descriptor of the shared memory, inherited.
    """

    socket: str
    slab: int

    def encode(self) -> str:
        """As text, for a command line."""
        return msgspec.json.encode(self).decode()


def decode_address(text: str) -> KeeperAddress:
    """What `KeeperAddress.encode` wrote.

    Raises:
        ValueError: it is something else.
    """
    return msgspec.json.decode(text, type=KeeperAddress)
