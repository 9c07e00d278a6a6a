"""Messages on a Unix socket: two lengths, the type's name, its msgpack body. Nothing is pickled."""

import asyncio
import contextlib
import socket
import struct
from typing import Generic

from engine.ipc.codec import Message, MessageCodec, ProtocolError

_LENGTHS = struct.Struct("<HI")
_LONGEST_NAME = 64


def packed(codec: MessageCodec[Message], message: Message) -> bytes:
    """The bytes of a message."""
    name, body = codec.encode(message)
    return b"".join((_LENGTHS.pack(len(name), len(body)), name, body))


async def receive(reader: asyncio.StreamReader, codec: MessageCodec[Message]) -> Message:
    """The next message.

    Raises:
        EOFError: the other side has closed.
        ProtocolError: something else came.
    """
    name, body = _lengths(await reader.readexactly(_LENGTHS.size))
    data = await reader.readexactly(name + body)
    return codec.decode([data[:name], data[name:]])


class Line(Generic[Message]):
    """The blocking end of a connection, for one thread at a time.

    Args:
        path: of the socket.
        codec: of what comes back.
        seconds: how long connecting, and each message, may take.

    Raises:
        OSError: nobody listens there.
    """

    def __init__(self, path: str, codec: MessageCodec[Message], seconds: float) -> None:
        self._codec = codec
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(seconds)
            self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise

    def wait_at_most(self, seconds: float | None) -> None:
        """From now on a message may take that long; None: as long as it likes."""
        self._socket.settimeout(seconds)

    def send(self, data: bytes) -> None:
        """Send a message's bytes.

        Raises:
            OSError: nobody takes them.
        """
        self._socket.sendall(data)

    def receive(self) -> Message:
        """The next message.

        Raises:
            OSError: none came in time, or the connection broke.
            EOFError: the other side has closed.
            ProtocolError: something else came.
        """
        name, body = _lengths(self._exactly(_LENGTHS.size))
        data = self._exactly(name + body)
        return self._codec.decode([data[:name], data[name:]])

    def cut(self) -> None:
        """End it under a thread that waits for a message: it gets `EOFError`."""
        with contextlib.suppress(OSError):  # the other side was faster
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def _exactly(self, count: int) -> bytes:
        data = bytearray(count)
        view, got = memoryview(data), 0
        while got < count:
            more = self._socket.recv_into(view[got:])
            if not more:
                raise EOFError("the connection was closed")
            got += more
        return bytes(data)


def _lengths(head: bytes) -> tuple[int, int]:
    name, body = _LENGTHS.unpack(head)
    if name > _LONGEST_NAME:
        raise ProtocolError(f"a name of {name} bytes")
    return name, body
