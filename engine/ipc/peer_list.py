"""The keepers of a server's machines: a file on each of them, which its keeper and its engines look at every second.

Who starts them writes it; so they learn of machines that come and go, whenever they are started themselves. It lies in a private
folder, and holds nothing secret.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import msgspec

from engine.ipc.curve import PeerKeys

# Each is the whole of it, for a version of CUDA; `nixl` chooses between the others. None needs a GPU.
_NIXL = ("nixl", "nixl_cu13", "nixl_cu12")


def nixl_package() -> str | None:
    """The package of NIXL that is installed; None: none is."""
    return next((name for name in _NIXL if find_spec(name) is not None), None)


class KeeperPeer(msgspec.Struct, frozen=True):
    """A machine's keeper.

    Attributes:
        endpoint: where it listens.
        key: public key of that machine, of its keeper and of all its engines.
    """

    endpoint: str
    key: str


class PeerPass(msgspec.Struct, frozen=True):
    """What a process is told of the others.

    Attributes:
        path: of the file.
        endpoint: where its own machine's keeper listens.
        public: its own machine's public key.
        secret: the other half.
    """

    path: str
    endpoint: str
    public: str
    secret: str

    def encode(self) -> bytes:
        """For a pipe to a child; a command line is public."""
        return msgspec.json.encode(self)

    def others(self) -> list[KeeperPeer]:
        """The keepers of the other machines, as the file has them now."""
        return [peer for peer in read_peers(Path(self.path)) if peer.endpoint != self.endpoint]

    def keys_for(self, peer: KeeperPeer) -> PeerKeys:
        """What to prove to a peer, and what it has to prove."""
        return PeerKeys(self.public, self.secret, peer.key)


def read_pass(descriptor: str) -> PeerPass:
    """What was written to the pipe of this number.

    Raises:
        ValueError: it is something else.
    """
    with os.fdopen(int(descriptor), "rb") as pipe:
        return msgspec.json.decode(pipe.read(), type=PeerPass)


def write_peers(path: Path, peers: list[KeeperPeer]) -> None:
    """Replace the file, in one step."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(peers))
    fresh.replace(path)


def read_peers(path: Path) -> list[KeeperPeer]:
    """Who is in it; nobody, if there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[KeeperPeer])
    except FileNotFoundError:
        return []
