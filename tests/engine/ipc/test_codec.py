"""The one codec: every message of every wire comes back as it was, and nothing else is let through."""

import contextlib
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ipc.codec import MessageCodec, ProtocolError
from scheduler.types.messages import (
    COMMANDS,
    EVENTS,
    AbortRequests,
    AddRequest,
    EngineStats,
    FinishReason,
    Output,
    RequestTimes,
    Shutdown,
    StepOutputs,
    TierStats,
)
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import TokenLogprobs

COMMAND_CODEC, EVENT_CODEC = MessageCodec(COMMANDS), MessageCodec(EVENTS)
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=9)


@given(st.text(max_size=30), TOKENS, st.integers(0, 2**64 - 1), st.floats(0, 10))
def test_a_request_comes_back_as_it_was(request_id, tokens, seed, pin_seconds):
    sampling = SamplingParams(max_tokens=3, seed=seed, logit_bias={5: -1.5}, bad_words=((1, 2), (3,)))
    request = AddRequest(request_id=request_id, prompt_ids=tokens, sampling=sampling, pin_seconds=pin_seconds)
    assert COMMAND_CODEC.decode(COMMAND_CODEC.encode(request)) == request


@given(TOKENS, st.sampled_from([None, *FinishReason]), st.floats(allow_nan=False))
def test_outputs_come_back_as_they_were(tokens, reason, seconds):
    logprobs = [TokenLogprobs(token_id=token, logprob=-0.5, rank=1, top=[(token, -0.5)]) for token in tokens]
    output = Output(request_id="r", token_ids=tokens, logprobs=logprobs, finish_reason=reason)
    output.times = RequestTimes(queued=seconds, scheduled=seconds)
    event = StepOutputs(outputs=[output], stats=EngineStats(tiers={"host": TierStats(loaded=3)}), step_seconds=seconds)
    assert EVENT_CODEC.decode(EVENT_CODEC.encode(event)) == event


def test_a_message_is_its_name_and_a_msgpack_map():
    name, body = COMMAND_CODEC.encode(AbortRequests(request_ids=["a"])).split(b"\0")
    assert (name, msgspec.msgpack.decode(body)) == (b"AbortRequests", {"request_ids": ["a"]})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "b'' is not a message of this wire"),
        (b"\0", "b'' is not a message of this wire"),
        (b"Shutdown", "b'Shutdown' is not a message of this wire"),
        (b"StepOutputs\0\x80", "b'StepOutputs' is not a message of this wire"),
        (b"\xff" * 1000 + b"\0", r"\\xff' is not a message"),
        (b"\xff" * 1000, r"\\xff' is not a message"),
        (b"Shutdown\0", "the body of Shutdown does not fit"),
        (b"Shutdown\0\x80\0", "the body of Shutdown does not fit"),
        (b"Shutdown\0\x81\xa6reason\x01", r"Expected `str`, got `int`"),
        (b"AbortRequests\0\x80", "missing required field `request_ids`"),
    ],
)
def test_what_lies_outside_the_vocabulary_is_refused(data, said):
    with pytest.raises(ProtocolError, match=said) as refused:
        COMMAND_CODEC.decode(data)
    assert len(str(refused.value)) < 300  # however long the message


@given(st.sampled_from([b"", b"Ready", b"Ready\0"]), st.binary(max_size=80))
def test_no_bytes_get_past_as_anything_but_a_message_or_a_protocol_error(beginning, rest):
    try:
        message = EVENT_CODEC.decode(beginning + rest)
    except ProtocolError:
        return
    assert type(message) in EVENTS


def test_only_the_wires_own_messages_are_encoded():
    @dataclass
    class Other:
        pass

    for codec, message in ((COMMAND_CODEC, Other()), (EVENT_CODEC, Shutdown())):
        with pytest.raises(ProtocolError, match=f"{type(message).__name__} is not a message"):
            codec.encode(message)


def test_two_messages_of_one_name_are_a_defect():
    other = type("Shutdown", (), {"__annotations__": {}})
    with pytest.raises(ValueError, match="same name"):
        MessageCodec([Shutdown, dataclass(other)])


@pytest.mark.parametrize(
    "body",
    [
        b"\xa1\xff",
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\x81\xa5error\xa1\xff",
        b"",
        b"\xc1",
        b"\xcf" + b"\xff" * 8,
    ],
)
@pytest.mark.parametrize("types", [COMMANDS, EVENTS], ids=["commands", "events"])
def test_no_bytes_do_anything_but_fit_or_not(body, types):
    codec = MessageCodec(types)
    for kind in types:
        with contextlib.suppress(ProtocolError):
            assert isinstance(codec.decode(kind.__name__.encode() + b"\0" + body), kind)
