"""The wire between server and HTTP process: whatever is said arrives once, in order, however its bytes are cut."""

import asyncio
from typing import get_args

from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.fronts import messages as said
from server.fronts.link import FrontWire
from server.http.cycle import Frame
from server.http.head import RequestHead
from tests.drawn import drawn
from tests.server.fronts.rig import HeldTransport, head_of

numbers, data, flags = st.integers(0, 2**40), st.binary(max_size=300), st.booleans()
addresses = st.none() | st.tuples(st.text(max_size=9), st.none() | st.integers(0, 65535))
heads = st.builds(
    RequestHead,
    method=st.sampled_from(["GET", "POST"]),
    version=st.sampled_from(["1.1", "1.0"]),
    path=st.text(max_size=9),
    raw_path=data,
    query=data,
    headers=st.lists(st.tuples(data, data), max_size=3),
    length=st.none() | st.integers(0, 10**18),
    keep_alive=flags,
    expects_continue=flags,
)
FROM_FRONT = {
    said.FrontReady: (),
    said.FrontBeat: (numbers, numbers, st.floats(0, 1e9)),
    said.RequestBegun: (numbers, heads, addresses, addresses, st.sampled_from(["http", "https"])),
    said.BodyPart: (numbers, data),
    said.BodyEnded: (numbers,),
    said.ClientGone: (numbers,),
    said.ClientTakes: (numbers, flags),
    said.ProbeClient: (numbers,),
    said.ClientRefused: (st.text(max_size=9),),
}
TO_FRONT = {
    said.WriteBytes: (numbers, data, flags),
    said.FrameAnnounced: (numbers, st.builds(Frame, data, data, flags)),
    said.FramesFilled: (st.dictionaries(numbers, data, max_size=4),),
    said.ReadOn: (numbers,),
    said.AnswerEnded: (numbers, flags),
    said.CutConnection: (numbers,),
    said.EndReceiving: (st.text(max_size=9),),
    said.CutAll: (),
    said.StopServing: (),
}


def turns_of(kinds):
    return st.lists(
        st.lists(st.one_of([st.builds(kind, *parts) for kind, parts in kinds.items()]), max_size=5), max_size=6
    )


def carried(kinds, turns, sizes):
    """What arrives of messages of several turns of the loop, in pieces of these sizes."""

    async def body():
        arrived, transport = [], HeldTransport()
        sender = FrontWire(kinds, arrived.append, lambda: None)
        sender.connection_made(transport)
        receiver = FrontWire(kinds, arrived.append, lambda: None)
        left = iter(sizes)
        for turn in turns:
            for message in turn:
                sender.send(message)
            await asyncio.sleep(0)
            transport.deliver(receiver, next(left, 3))
        while transport.deliver(receiver, next(left, 50)):
            pass
        assert not receiver._received, "nothing is left over"
        return arrived

    return asyncio.run(body())


def test_every_message_is_tried():
    assert set(FROM_FRONT) == set(get_args(said.FromFront)) and set(TO_FRONT) == set(get_args(said.ToFront))


@given(turns_of(FROM_FRONT), st.lists(st.integers(1, 400), max_size=40))
@example([[said.RequestBegun(0, head_of(), None, None, "http"), said.BodyPart(0, bytes(70_000))]], [1, 2, 1, 65_536])
@settings(max_examples=drawn(20))
def test_what_an_http_process_says_arrives_however_it_is_cut(turns, sizes):
    assert carried(said.FromFront, turns, sizes) == [message for turn in turns for message in turn]


@given(turns_of(TO_FRONT), st.lists(st.integers(1, 400), max_size=40))
@settings(max_examples=drawn(20))
def test_what_the_server_says_arrives_however_it_is_cut(turns, sizes):
    assert carried(said.ToFront, turns, sizes) == [message for turn in turns for message in turn]


steps = st.lists(
    st.sampled_from(["turn", "write", "fill"]).flatmap(lambda what: st.tuples(st.just(what), st.integers(0, 2)))
)


@given(steps)
@settings(max_examples=drawn(30))
def test_of_one_request_writes_and_fills_keep_their_order(steps):
    async def body():
        arrived, transport = [], HeldTransport()
        wire = FrontWire(said.ToFront, arrived.append, lambda: None)
        wire.connection_made(transport)
        expected = {0: [], 1: [], 2: []}
        for index, (what, number) in enumerate(steps):
            content = b"%d" % index
            if what == "turn":
                await asyncio.sleep(0)
                continue
            expected[number].append(content)
            wire.fill(number, content) if what == "fill" else wire.send(said.WriteBytes(number, content, True))
        await asyncio.sleep(0)
        transport.deliver(wire, len(transport.bytes))
        found = {0: [], 1: [], 2: []}
        for message in arrived:
            parts = message.middles if isinstance(message, said.FramesFilled) else {message.number: message.data}
            for number, content in parts.items():
                found[number].append(content)
        assert found == expected

    asyncio.run(body())


def test_what_a_step_brings_all_streams_is_one_message():
    async def body():
        arrived, transport = [], HeldTransport()
        wire = FrontWire(said.ToFront, arrived.append, lambda: None)
        wire.connection_made(transport)
        for content in (b"a", b"b"):
            for number in range(100):
                wire.fill(number, content)
        await asyncio.sleep(0)
        transport.deliver(wire, len(transport.bytes))
        assert arrived == [said.FramesFilled(dict.fromkeys(range(100), content)) for content in (b"a", b"b")]

    asyncio.run(body())


def test_who_closes_has_said_all_and_says_nothing_after_it():
    async def body():
        arrived, lost, transport = [], [], HeldTransport()
        wire = FrontWire(said.ToFront, arrived.append, lambda: lost.append(True))
        wire.connection_made(transport)
        wire.send(said.StopServing())
        wire.close()
        await asyncio.sleep(0)
        assert transport.closed and not transport.late
        transport.deliver(wire, 100)
        assert arrived == [said.StopServing()]
        wire.connection_lost(None)
        wire.send(said.CutAll())
        wire.fill(1, b"nobody hears it")
        await asyncio.sleep(0)
        wire.close()
        assert lost == [True] and not transport.late

    asyncio.run(body())
