"""Messages on a Unix socket: a length, and what the codec makes of each. Nothing is pickled."""

import asyncio
import contextlib
import socket
import struct
from typing import Generic

from engine.ipc.codec import Message, MessageCodec

_LENGTH = struct.Struct("<I")


def packed(codec: MessageCodec[Message], message: Message) -> bytes:
    """The bytes of a message."""
    data = codec.encode(message)
    return _LENGTH.pack(len(data)) + data


async def receive(reader: asyncio.StreamReader, codec: MessageCodec[Message]) -> Message:
    """The next message.

    Raises:
        EOFError: the other side has closed.
        ProtocolError: something else came.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return codec.decode(await reader.readexactly(length))


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
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return self._codec.decode(self._exactly(length))

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
