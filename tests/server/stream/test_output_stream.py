"""One sequence's outputs, from the hand of the client to its reader: order, one end, and what is counted when."""

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from scheduler.types.messages import AddRequest, FinishReason, Output
from scheduler.types.sampling_params import SamplingParams
from server.errors import EngineDied
from server.stream.output_stream import OutputStream
from server.telemetry.lifetime import Lifetime
from tests.drawn import drawn

REQUEST = AddRequest(request_id="r", prompt_ids=[1], sampling=SamplingParams(max_tokens=9))


class Opened:
    """A stream, and how often it was told to have ended."""

    def __init__(self):
        self.ends = []
        self.lifetime = Lifetime(received=0.0)
        self.stream = OutputStream(REQUEST, self.lifetime, self.ends.append)


def output(*ids, end=None):
    return Output(request_id="r", token_ids=list(ids), finish_reason=end)


def run(body):
    return asyncio.run(body())


async def read(stream):
    return [output.token_ids async for output in stream]


def test_what_came_before_the_reader_is_read_in_order():
    async def body():
        opened = Opened()
        for i in range(3):
            opened.stream.push(output(i))
        opened.stream.push(output(3, end=FinishReason.STOP))
        assert await read(opened.stream) == [[0], [1], [2], [3]]
        assert await read(opened.stream) == []
        assert opened.ends == [opened.stream]
        assert (opened.lifetime.completion_tokens, opened.lifetime.reason) == (4, FinishReason.STOP)

    run(body)


def test_the_end_is_told_when_the_reader_asks_for_more():
    async def body():
        opened = Opened()
        opened.stream.push(output(1, 2, end=FinishReason.LENGTH))
        await anext(opened.stream)
        assert opened.ends == [] and opened.lifetime.finished is None
        opened.lifetime.completion_tokens -= 1  # the reader found a stop string inside
        opened.lifetime.reason = FinishReason.STOP
        with pytest.raises(StopAsyncIteration):
            await anext(opened.stream)
        assert len(opened.ends) == 1
        assert (opened.lifetime.completion_tokens, opened.lifetime.reason) == (1, FinishReason.STOP)

    run(body)


def test_an_error_comes_after_what_has_arrived():
    async def body():
        opened = Opened()
        opened.stream.push(output(1))
        opened.stream.fail(EngineDied("gone"))
        assert (await anext(opened.stream)).token_ids == [1]
        with pytest.raises(EngineDied, match="gone"):
            await anext(opened.stream)
        assert await read(opened.stream) == []
        assert len(opened.ends) == 1 and opened.lifetime.reason is FinishReason.ERROR

    run(body)


def test_an_error_wakes_the_reader():
    async def body():
        opened = Opened()
        reader = asyncio.create_task(anext(opened.stream))
        await asyncio.sleep(0)
        opened.stream.fail(EngineDied("gone"))
        with pytest.raises(EngineDied):
            await reader

    run(body)


@pytest.mark.parametrize("waiting", [False, True])
def test_closing_ends_the_iteration_and_drops_what_was_not_read(waiting):
    async def body():
        opened = Opened()
        if waiting:
            reader = asyncio.create_task(read(opened.stream))
            await asyncio.sleep(0)
        else:
            opened.stream.push(output(1))
        opened.stream.close()
        opened.stream.close()
        assert await (reader if waiting else read(opened.stream)) == []
        assert len(opened.ends) == 1 and opened.lifetime.reason is FinishReason.ABORT
        assert opened.lifetime.completion_tokens == 0

    run(body)


def test_a_cancelled_reader_closes():
    async def body():
        opened = Opened()
        reader = asyncio.create_task(anext(opened.stream))
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert len(opened.ends) == 1 and opened.lifetime.reason is FinishReason.ABORT

    run(body)


ACTIONS = st.lists(st.sampled_from(["push", "finish", "fail", "read", "close", "turn"]), max_size=20)


@given(actions=ACTIONS)
@hypothesis_settings(max_examples=drawn(200))
def test_any_order_of_events_has_one_end_and_counts_what_was_read(actions):
    async def body():
        opened, given_out, reads = Opened(), 0, []
        done = False
        for action in actions:
            if action == "push" and not done:
                opened.stream.push(output(given_out))
                given_out += 1
            elif action == "finish" and not done:
                opened.stream.push(output(given_out, end=FinishReason.LENGTH))
                given_out, done = given_out + 1, True
            elif action == "fail":
                opened.stream.fail(EngineDied("gone"))
                done = True
            elif action == "close":
                opened.stream.close()
            elif action == "read" and (not reads or reads[-1].done()):  # one reader
                reads.append(asyncio.create_task(anext(opened.stream, None)))
            await asyncio.sleep(0)
        opened.stream.close()
        await asyncio.gather(*reads, return_exceptions=True)
        return opened, [read.result() for read in reads if read.exception() is None]

    opened, outputs = run(body)
    seen = [token for output in outputs if output is not None for token in output.token_ids]
    assert seen == list(range(len(seen))), "in order, without a gap"
    assert opened.lifetime.completion_tokens == len(seen)
    assert opened.ends == [opened.stream]
    assert opened.lifetime.reason is not None and math.isfinite(opened.lifetime.finished)
