"""Messages between the server's process and an HTTP process. A request is named by a number, new for each of one process."""

import msgspec

from server.http.cycle import Frame
from server.http.head import RequestHead

Address = tuple[str, int | None]  # the path of a Unix socket has no port

# --- HTTP process -> server ------------------------------------------------------------------------------------------


class FrontReady(msgspec.Struct, tag=True, array_like=True):
    """It takes connections from now on."""


class FrontBeat(msgspec.Struct, tag=True, array_like=True):
    """It is alive. Sent every `BEAT_SECONDS`, and whenever a connection is there or has ended."""

    taken: int  # connections that it was given so far
    open: int  # connections that it has
    cpu_seconds: float  # that it has used


class RequestBegun(msgspec.Struct, tag=True, array_like=True):
    """A request's head has come."""

    number: int
    head: RequestHead
    client: Address | None
    server: Address | None
    scheme: str


class BodyPart(msgspec.Struct, tag=True, array_like=True):
    """Some of its body has."""

    number: int
    data: bytes


class BodyEnded(msgspec.Struct, tag=True, array_like=True):
    """All of its body has."""

    number: int


class ClientGone(msgspec.Struct, tag=True, array_like=True):
    """Its client has left, or was answered in the application's place: nothing more is written."""

    number: int


class ClientTakes(msgspec.Struct, tag=True, array_like=True):
    """Whether its client takes what is written."""

    number: int
    takes: bool


class ProbeClient(msgspec.Struct, tag=True, array_like=True):
    """Its client has stopped sending: write something that means nothing."""

    number: int


class ClientRefused(msgspec.Struct, tag=True, array_like=True):
    """A connection was answered with this error, without the application being asked."""

    code: str


# --- server -> HTTP process ------------------------------------------------------------------------------------------


class WriteBytes(msgspec.Struct, tag=True, array_like=True):
    """Write these bytes."""

    number: int
    data: bytes
    started: bool  # whether they belong to the answer


class FrameAnnounced(msgspec.Struct, tag=True, array_like=True):
    """What is the same in the writes that fill it."""

    number: int
    frame: Frame


class FramesFilled(msgspec.Struct, tag=True, array_like=True):
    """Write what was announced around these, by the numbers of their requests."""

    middles: dict[int, bytes]


class ReadOn(msgspec.Struct, tag=True, array_like=True):
    """The application wants more of the body."""

    number: int


class AnswerEnded(msgspec.Struct, tag=True, array_like=True):
    """The answer is complete."""

    number: int
    keep_alive: bool


class CutConnection(msgspec.Struct, tag=True, array_like=True):
    """Close the connection at once: what was begun cannot be finished."""

    number: int


class EndReceiving(msgspec.Struct, tag=True, array_like=True):
    """Refuse the requests whose bodies are still on their way: why."""

    reason: str


class CutAll(msgspec.Struct, tag=True, array_like=True):
    """Close all connections at once."""


class StopServing(msgspec.Struct, tag=True, array_like=True):
    """Close the connections whose answers are written, and end."""


BEAT_SECONDS = 1.0
FromFront = (
    FrontReady
    | FrontBeat
    | RequestBegun
    | BodyPart
    | BodyEnded
    | ClientGone
    | ClientTakes
    | ProbeClient
    | ClientRefused
)
ToFront = (
    WriteBytes
    | FrameAnnounced
    | FramesFilled
    | ReadOn
    | AnswerEnded
    | CutConnection
    | EndReceiving
    | CutAll
    | StopServing
)
