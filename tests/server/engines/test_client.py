"""Sequences over a live connection: order, ends, aborts, the queue's bound."""

import asyncio
import contextlib

import pytest

from configs.settings import Settings
from scheduler.types.messages import FinishReason, MemoryPlan, Ready, StartPhase
from server.errors import QueueFull, Unavailable
from tests.server.engines.harness import eventually, read, run, running
from tests.server.engines.scripted_engine import FAIL, HOLD, READY, TOKEN

pytestmark = pytest.mark.processes


def test_outputs_arrive_in_order_and_end_with_the_finish_reason():
    async def body():
        async with running() as rig:
            stream = rig.submit(max_tokens=5)
            outputs = await read(stream)
            assert [output.token_ids for output in outputs] == [[TOKEN]] * 5
            assert [output.finish_reason for output in outputs] == [None] * 4 + [FinishReason.LENGTH]
            assert rig.client.open_count == 0
            lifetime = stream.lifetime
            assert (lifetime.completion_tokens, lifetime.cached_tokens, lifetime.preemptions) == (5, 3, 1)
            assert lifetime.reason is FinishReason.LENGTH
            assert lifetime.received <= lifetime.first_token <= lifetime.last_token <= lifetime.finished

    run(body)


def test_many_sequences_share_one_reader():
    async def body():
        async with running() as rig:
            streams = [rig.submit(max_tokens=1 + i % 7) for i in range(200)]
            results = await asyncio.gather(*(read(stream) for stream in streams))
            assert [len(outputs) for outputs in results] == [1 + i % 7 for i in range(200)]

    run(body)


def test_start_up_events_are_told_in_order():
    async def body():
        async with running() as rig:
            assert [(name, type(event)) for name, event in rig.events] == [
                ("engine", kind) for kind in (MemoryPlan, StartPhase, Ready)
            ]
            assert rig.client.status.info == READY
            assert rig.client.status.phases == [StartPhase(name="load weights", seconds=0.25)]

    run(body)


def test_closing_early_aborts_in_the_engine():
    async def body():
        async with running() as rig:
            stream = rig.submit(HOLD)
            await eventually(lambda: rig.client.status.stats.running == 1)
            stream.close()
            await eventually(lambda: rig.client.status.stats.running == 0)
            assert stream.lifetime.reason is FinishReason.ABORT
            assert await read(stream) == []
            assert rig.sample("headrace_sequences_finished_total", reason="abort") == 1

    run(body)


def test_cancelling_the_reader_aborts_in_the_engine():
    async def body():
        async with running() as rig:
            stream = rig.submit(HOLD)
            task = asyncio.create_task(anext(stream))
            await eventually(lambda: rig.client.status.stats.running == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await eventually(lambda: rig.client.status.stats.running == 0)
            assert rig.client.open_count == 0

    run(body)


def test_a_reader_that_stops_on_purpose_names_the_reason():
    async def body():
        async with running() as rig:
            stream = rig.submit(HOLD)
            stream.lifetime.reason = FinishReason.STOP
            stream.close()
            stream.close()
            assert rig.sample("headrace_sequences_finished_total", reason="stop") == 1
            assert rig.sample("headrace_sequences_finished_total", reason="abort") == 0

    run(body)


def test_the_reader_may_correct_the_final_output_before_it_is_counted():
    async def body():
        async with running() as rig:
            stream = rig.submit(max_tokens=1)
            async with contextlib.aclosing(stream):
                assert (await anext(stream)).finish_reason is FinishReason.LENGTH
                stream.lifetime.reason = FinishReason.STOP  # a stop string within the last token
            assert rig.sample("headrace_sequences_finished_total", reason="stop") == 1
            assert rig.sample("headrace_sequences_finished_total", reason="length") == 0

    run(body)


def test_abort_ends_the_reader_with_the_reason():
    async def body():
        async with running() as rig:
            streams = [rig.submit(HOLD) for _ in range(3)]
            rig.client.abort([streams[0].request_id, "unknown"], "enough")
            rig.client.abort_all("the server is shutting down")
            outputs = [output for stream in streams for output in await read(stream)]
            assert [output.finish_reason for output in outputs] == [FinishReason.ABORT] * 3
            assert [output.error for output in outputs] == ["enough", *["the server is shutting down"] * 2]
            await eventually(lambda: rig.client.status.stats.running == 0)

    run(body)


def test_one_failed_sequence_fails_alone():
    async def body():
        async with running() as rig:
            failed, fine = await asyncio.gather(read(rig.submit(FAIL)), read(rig.submit()))
            assert (failed[-1].finish_reason, failed[-1].error) == (FinishReason.ERROR, "scripted")
            assert fine[-1].finish_reason is FinishReason.LENGTH
            assert rig.sample("headrace_sequences_finished_total", reason="error") == 1

    run(body)


def test_a_full_queue_refuses_with_the_numbers_and_a_delay():
    async def body():
        async with running(settings=Settings(max_waiting=2)) as rig:
            streams = [rig.submit(HOLD), rig.submit(HOLD)]  # nothing reported yet: both count as waiting
            with pytest.raises(QueueFull, match="2 sequences wait, max_waiting is 2") as refused:
                rig.client.ensure_room(1)
            assert int(refused.value.headers["Retry-After"]) >= 1
            await eventually(lambda: rig.client.status.stats.running == 2)  # running ones leave the queue
            rig.client.ensure_room(2)
            streams.append(rig.submit(HOLD))
            with pytest.raises(QueueFull):
                rig.client.ensure_room(2)
            for stream in streams:
                stream.close()

    run(body)


def test_a_request_larger_than_the_queue_enters_an_empty_one():
    async def body():
        async with running(settings=Settings(max_waiting=2)) as rig:
            rig.client.ensure_room(5)
            rig.submit(HOLD)
            with pytest.raises(QueueFull):
                rig.client.ensure_room(5)

    run(body)


def test_a_request_id_in_use_is_a_defect():
    async def body():
        async with running() as rig:
            stream = rig.submit(HOLD)
            request = rig.request()
            request.request_id = stream.request_id
            with pytest.raises(ValueError, match="in use"):
                rig.client.submit(request, stream.lifetime)

    run(body)


def test_nothing_is_taken_before_ready():
    async def body():
        async with running("--start", "never", until=lambda rig: bool(rig.processes)) as rig:
            with pytest.raises(Unavailable, match="starting") as refused:
                rig.submit()
            assert int(refused.value.headers["Retry-After"]) >= 1

    run(body)
