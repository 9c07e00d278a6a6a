"""Whatever is kept of a stream and wherever its connection breaks, each of its bytes comes once."""

import random

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from server.stream.event_buffer import EventBuffer, size_of
from tests.drawn import drawn

LETTERS = "ab: {}id1ü€🙂\\"


def numbered(events):
    return b"".join(b"id: %d\n%b" % (number, event) for number, event in enumerate(events, start=1))


def whole_events(received: bytes) -> bytes:
    """What a client keeps: an event without its blank line is discarded, as the HTML standard has it."""
    end = received.rfind(b"\n\n")
    return received[: end + 2] if end >= 0 else b""


def last_id(received: bytes) -> int:
    ids = [line for line in received.split(b"\n") if line.startswith(b"id: ")]
    return int(ids[-1].removeprefix(b"id: ")) if ids else 0


@given(seed=st.integers(0, 2**32))
@hypothesis_settings(max_examples=drawn(200))
def test_any_cuts_of_any_stream_at_any_byte_add_up_to_it(seed):
    draw = random.Random(seed)
    texts = ["".join(draw.choices(LETTERS, k=draw.randrange(12))) for _ in range(draw.randrange(1, 30))]
    events = [f"data: {text}\n\n".encode() for text in texts]
    buffer, come, kept = EventBuffer(), list(reversed(events)), b""
    while last_id(kept) < len(events):
        position, received = last_id(kept), b""
        for _ in range(draw.randrange(1, 9)):
            if come and draw.random() < 0.7:
                buffer.append(come.pop())
            if position < buffer.last:
                part, position = buffer.after(position, draw.choice([1, 40, 10**6]))
                received += part
            assert buffer.size == sum(map(size_of, events[buffer.dropped : buffer.last]))
        while buffer.dropped < last_id(kept) and draw.random() < 0.5:
            buffer.drop_oldest()  # what the client has said that it has
        kept += whole_events(received[: draw.randrange(len(received) + 1)])
    assert kept == numbered(events)


def test_a_write_has_at_least_one_event_and_no_more_than_asked_for():
    buffer = EventBuffer()
    for event in (b"data: a\n\n", b"data: bb\n\n", b"data: ccc\n\n"):
        buffer.append(event)
    assert buffer.after(0, 1) == (b"id: 1\ndata: a\n\n", 1)
    assert buffer.after(0, 19) == (numbered([b"data: a\n\n", b"data: bb\n\n"]), 2)
    buffer.drop_oldest()
    assert buffer.after(1, 10**6)[1] == buffer.last == 3
