"""Whether a client takes what is written to it."""

import asyncio
import fcntl
import struct
import termios


class WriteWatch:
    """Of one connection.

    Attributes:
        written: bytes handed to the transport so far; its user counts them.
    """

    def __init__(self, transport: asyncio.Transport, now: float) -> None:
        self.written = 0
        self._transport = transport
        self._taken, self._moved = 0, now

    def stalled_seconds(self, now: float) -> float:
        """How long nothing has been taken of what waits for the client: since the look at which something last was."""
        if self._taken != self.written:
            taken = self.written - self._transport.get_write_buffer_size() - self._unacknowledged()
            if taken == self._taken:
                return now - self._moved
            self._taken = taken
        self._moved = now
        return 0.0

    @property
    def all_taken(self) -> bool:
        """Whether the client had taken everything at the last look."""
        return self._taken == self.written

    def _unacknowledged(self) -> int:
        """Bytes that the system has taken over and the client's has not."""
        try:
            answer = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, b"\0" * 4)
        except OSError:  # a system that does not say
            return 0
        return int(struct.unpack("i", answer)[0])
