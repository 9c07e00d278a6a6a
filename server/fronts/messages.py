"""Messages between the server's process and an HTTP process. A request is named by a number, new for each of one process."""

import msgspec

from server.http.head import RequestHead

Address = tuple[str, int | None]  # the path of a Unix socket has no port

# --- HTTP process -> server ------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, tag=True, array_like=True):
    """It takes connections from now on."""


class Beat(msgspec.Struct, tag=True, array_like=True):
    """It is alive. Sent every `BEAT_SECONDS`, and whenever a connection has ended."""

    taken: int  # connections that it was given so far
    open: int  # connections that it has
    cpu_seconds: float  # that it has used


class Begin(msgspec.Struct, tag=True, array_like=True):
    """A request's head has come."""

    number: int
    head: RequestHead
    client: Address | None
    server: Address | None
    scheme: str


class Body(msgspec.Struct, tag=True, array_like=True):
    """Some of its body has."""

    number: int
    data: bytes


class BodyEnded(msgspec.Struct, tag=True, array_like=True):
    """All of its body has."""

    number: int


class Gone(msgspec.Struct, tag=True, array_like=True):
    """Its client has left, or was answered in the application's place: nothing more is written."""

    number: int


class Takes(msgspec.Struct, tag=True, array_like=True):
    """Whether its client takes what is written."""

    number: int
    takes: bool


class Probe(msgspec.Struct, tag=True, array_like=True):
    """Its client has stopped sending: write something that means nothing."""

    number: int


class Refused(msgspec.Struct, tag=True, array_like=True):
    """A connection was answered with this error, without the application being asked."""

    code: str


# --- server -> HTTP process ------------------------------------------------------------------------------------------


class Write(msgspec.Struct, tag=True, array_like=True):
    """Write these bytes."""

    number: int
    data: bytes
    started: bool  # whether they belong to the answer


class Read(msgspec.Struct, tag=True, array_like=True):
    """The application wants more of the body."""

    number: int


class Answered(msgspec.Struct, tag=True, array_like=True):
    """The answer is complete."""

    number: int
    keep_alive: bool


class Cut(msgspec.Struct, tag=True, array_like=True):
    """Close the connection at once: what was begun cannot be finished."""

    number: int


class EndReceiving(msgspec.Struct, tag=True, array_like=True):
    """Refuse the requests whose bodies are still on their way: why."""

    reason: str


class CutAll(msgspec.Struct, tag=True, array_like=True):
    """Close all connections at once."""


class Stop(msgspec.Struct, tag=True, array_like=True):
    """Close the connections whose answers are written, and end."""


BEAT_SECONDS = 1.0
FromFront = Hello | Beat | Begin | Body | BodyEnded | Gone | Takes | Probe | Refused
ToFront = Write | Read | Answered | Cut | EndReceiving | CutAll | Stop
