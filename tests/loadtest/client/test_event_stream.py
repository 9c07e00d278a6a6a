"""Any rendering of the same events that the HTML standard allows reads the same, wherever the network cut it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client.event_stream import data_of, events_of

LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
# Lines that a reader ignores: comments, other fields, names that only look like `data`.
IGNORED = st.sampled_from(
    [b":", b": still here", b":data: x", b"event: x", b"id: 3", b"retry: 9", b"Data: x", b" data: x", b"x"]
)
WORDS = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12).map(str.encode)
# Each event as the values of its data lines.
EVENTS = st.lists(st.lists(WORDS, min_size=1, max_size=3), max_size=5)


def read(body, ends=None, times=None):
    ends = ends or [len(body)]
    return list(events_of(body, times or [float(end) for end in ends], ends))


def data(body):
    return [event.data for event in read(body) if event.data is not None]


@st.composite
def rendered(draw, events):
    """Some bytes that say `events`. A CR is never followed by a line that begins with LF, which would be one CRLF."""
    body = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    for values in events:
        lines = [line for value in values for line in (*draw(st.lists(IGNORED, max_size=2)), field(draw, value))]
        for line in (*lines, b""):
            end = draw(LINE_ENDS)
            if end == b"\n" and body.endswith(b"\r") and not line:
                end = b"\r\n"
            body += line + end
    return body


def field(draw, value):
    if not value and draw(st.booleans()):
        return draw(st.sampled_from([b"data", b"data:"]))
    return b"data:" + (b"" if not value.startswith(b" ") and draw(st.booleans()) else b" ") + value


@given(st.data(), EVENTS)
def test_every_valid_rendering_says_the_same(drawn, events):
    assert data(drawn.draw(rendered(events))) == [b"\n".join(values) for values in events]


@given(st.data(), EVENTS, WORDS)
def test_what_no_blank_line_ends_is_no_event(drawn, events, rest):
    body = drawn.draw(rendered(events)).removesuffix(b"\r") + b": end\n\ndata: " + rest
    found = read(body)
    assert [event.data for event in found if event.data is not None] == [b"\n".join(values) for values in events]
    assert not found[-1].whole and found[-1].raw == b"data: " + rest


@given(st.data(), EVENTS)
def test_the_events_are_the_body_and_each_has_the_time_of_its_last_byte(drawn, events):
    body = drawn.draw(rendered(events))
    ends = sorted({*drawn.draw(st.lists(st.integers(1, max(1, len(body))), max_size=9)), len(body)} - {0})
    found = read(body, ends) if body else []
    assert b"".join(event.raw for event in found) == body
    place = 0
    for event in found:
        place += len(event.raw)
        assert event.at == min(end for end in ends if end >= place)


@given(st.data(), EVENTS)
def test_pieces_change_times_and_nothing_else(drawn, events):
    body = drawn.draw(rendered(events)) or b"\n"
    at = drawn.draw(st.integers(1, len(body)))
    assert [each[1:] for each in read(body, sorted({at, len(body)}))] == [each[1:] for each in read(body)]


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_can_be_read(body, ended):
    body += b"\n\n" if ended else b""
    found = read(body)
    assert b"".join(event.raw for event in found) == body
    assert all(event.whole for event in found[:-1])
    assert all(event.whole or event.data is None for event in found)
    for event in found:
        assert event.data is None or b"\r" not in event.data


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", []),
        (b"\n", []),
        (b"\r\n\r\n\n\r", []),
        (b"data: a\n\ndata: b\r\n\r\n", [b"a", b"b"]),  # each event has its own line ends
        (b"data: a\r\n\ndata: b\n\r\n", [b"a", b"b"]),  # and so has each line
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: a\r\n\rdata: b\n\r\n", [b"a", b"b"]),
        (b"data: a\rdata: b\n\n", [b"a\nb"]),  # a CR alone ends a line, not an event
        (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),  # CRLF is one end, not an end and a blank line
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),  # only the first mark is one
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),  # and only at the beginning of the stream
        (b"\n\n\ndata: a\n\n\n\ndata: b\n\n\n", [b"a", b"b"]),
        (b"data:\n\n", [b""]),
        (b"data\n\n", [b""]),
        (b"data: \n\n", [b""]),
        (b"data:\ndata:\n\n", [b"\n"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),  # only one space is the field's
        (b"data : a\n\n", []),
        (b"data: a: b\n\n", [b"a: b"]),
        (b"event: x\ndata: a\nid: 1\n\n", [b"a"]),
        (b": data: a\n\n", []),
        (b"data: \xe2\x80\xa8\x0b\x0c\x1c\xc2\x85\n\n", [b"\xe2\x80\xa8\x0b\x0c\x1c\xc2\x85"]),  # no line ends
        (b"data: a\n", []),
        (b"data: a", []),
        (b"data: a\n\ndata: b\n", [b"a"]),
    ],
)
def test_by_hand(body, said):
    assert data(body) == said


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_the_short_way_and_the_long_way_agree(end):
    for values in ([b"x"], [b"x", b"y"], [b""], [b" x"], [b"\xff"]):
        event = b"".join(b"data: " + value + end for value in values) + end
        assert data_of(event) == data_of(b":" + end + event) == b"\n".join(values)
