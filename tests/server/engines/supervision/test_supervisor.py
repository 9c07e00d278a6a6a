"""Engine death in all its forms, against a real child process: what readers see, and what comes after."""

import asyncio
import logging
import os
import signal
import time

import pytest
import zmq

from engine.ipc.sockets import connected
from scheduler.types.messages import FinishReason
from server.engines.process import EngineProcess
from server.engines.status import EngineStatus
from server.engines.supervision import supervisor as supervisor_module
from server.engines.supervision.restart import MAX_FAILED_STARTS, RESTART_DELAYS, WINDOW_SECONDS, RestartPolicy
from server.errors import ApiError, EngineDied, PoisonRequest, Unavailable
from tests.server.engines.harness import HEARTBEAT, arguments, eventually, read, run, running
from tests.server.engines.scripted_engine import DIE, EXIT_ORPHAN, GARBAGE, HANG, HOLD, STUCK, WAIT

pytestmark = pytest.mark.processes


async def outcome(stream):
    try:
        return await read(stream)
    except ApiError as error:
        return error


def test_a_killed_engine_comes_back_and_goes_on_with_every_open_sequence(caplog):
    async def body():
        async with running() as rig:
            streams = [rig.submit(HOLD) for _ in range(50)] + [rig.submit(WAIT)]
            await eventually(lambda: rig.client.status.stats.running == 51)
            readers = [asyncio.create_task(outcome(stream)) for stream in streams]
            await asyncio.sleep(0)
            os.kill(rig.processes[0].pid, signal.SIGKILL)
            await eventually(lambda: rig.client.status.state == "starting")
            with pytest.raises(Unavailable) as refused:
                rig.submit()
            assert int(refused.value.headers["Retry-After"]) >= 1
            await eventually(lambda: rig.client.status.stats.running == 51)
            assert not any(reader.done() for reader in readers)
            assert len(await read(rig.submit())) == 3
            os.kill(rig.processes[1].pid, signal.SIGKILL)
            results = await asyncio.gather(*readers[:50])
            assert all(isinstance(result, PoisonRequest) for result in results)
            assert len({id(result) for result in results}) == 50
            assert all(stream.lifetime.reason is FinishReason.ERROR for stream in streams[:50])
            assert [await read(stream) for stream in streams[:50]] == [[]] * 50  # once
            await eventually(lambda: rig.client.status.stats.running == 1)
            assert not readers[50].done(), "it has only waited"
            streams[50].close()
            await readers[50]
            assert rig.sample("headrace_engine_restarts_total") == 2
            assert rig.sample("headrace_replayed_requests_total") == 52
            assert rig.sample("headrace_sequences_finished_total", reason="error") == 50

    with caplog.at_level(logging.INFO):
        run(body)
    assert ["SIGKILL" in record.getMessage() for record in caplog.records] == [True, True]


def test_what_arrived_before_the_death_is_still_read():
    async def body():
        async with running() as rig:
            finished = rig.submit(max_tokens=4)
            await read(rig.submit(max_tokens=1))  # so the tokens above have arrived, unread
            with pytest.raises(PoisonRequest):
                await read(rig.submit(DIE))
            assert len(await read(finished)) == 4

    run(body)


def test_a_silent_engine_with_open_work_is_killed(caplog):
    async def body():
        async with running(hang_seconds=0.2) as rig:
            with pytest.raises(PoisonRequest):
                await read(rig.submit(HANG))
            await eventually(lambda: rig.client.status.state == "ready")
            assert len(rig.processes) == 3
            assert len(await read(rig.submit())) == 3

    run(body)
    assert "has said nothing for 0 s, longer than 0.2 s (hang_seconds)" in caplog.text


def test_an_engine_without_work_is_left_alone_as_long_as_its_heart_beats(caplog):
    async def body():
        async with running(hang_seconds=0.1) as rig:
            await asyncio.sleep(0.4)
            assert len(rig.processes) == 1
            assert len(await read(rig.submit())) == 3
            os.kill(rig.processes[0].pid, signal.SIGSTOP)  # or nobody would ever start another
            await eventually(lambda: len(rig.processes) == 2 and rig.client.status.state == "ready")

    run(body)
    assert "has said nothing for 0 s, longer than 0.1 s (hang_seconds)" in caplog.text


def test_an_engine_whose_step_does_not_end_is_killed_although_its_heart_beats(caplog):
    async def body():
        async with running(hang_seconds=0.2) as rig:
            with pytest.raises(PoisonRequest):
                await read(rig.submit(STUCK))
            await eventually(lambda: rig.client.status.state == "ready")
            assert len(await read(rig.submit())) == 3

    run(body)
    assert "has waited for 0 s for a step of 100 tokens, longer than 0.2 s (hang_seconds)" in caplog.text


def test_what_is_no_event_is_dropped_with_one_line(caplog):
    async def body():
        async with running() as rig:
            streams = [rig.submit(GARBAGE) for _ in range(3)]
            assert len(await read(rig.submit())) == 3
            assert len(rig.processes) == 1 and rig.client.status.state == "ready"
            for stream in streams:
                stream.close()

    run(body)
    assert caplog.text.count("Nonsense") == 1


@pytest.mark.parametrize(
    "frames", [[b"garbage"], [b"Ready\0\xff"], [b"Failed\0\x81\xa5error\xa1\xff"], [b"", b"Shutdown\0\x80", b""]]
)
def test_garbage_during_the_first_start_is_dropped_too(frames, tmp_path, caplog):
    gate = tmp_path / "gate"

    async def body():
        async with running("--gate", str(gate), until=lambda rig: bool(rig.processes)) as rig:
            context = zmq.Context()
            stranger = connected(context, zmq.PUSH, rig.processes[0].endpoints.events)
            for _ in range(3):
                stranger.send_multipart(frames)
            await eventually(lambda: "dropped" in caplog.text)
            gate.touch()
            await eventually(lambda: rig.client.status.state == "ready")
            assert len(await read(rig.submit())) == 3 and len(rig.processes) == 1
            context.destroy(linger=0)

    run(body)
    assert caplog.text.count("dropped") == 1


@pytest.mark.parametrize(
    ("start", "cause"), [("refuse", "no such weights"), ("crash", "exited with code 9"), ("never", "start_seconds")]
)
def test_a_first_start_that_fails_is_final_and_says_why(start, cause, caplog):
    async def body():
        seconds = 0.3 if start == "never" else 60.0
        dead = lambda rig: rig.client.status.state == "dead"  # noqa: E731
        async with running("--start", start, until=dead, start_seconds=seconds) as rig:
            assert len(rig.processes) == 1
            assert cause in rig.client.status.failure
            with pytest.raises(Unavailable, match=cause.replace("(", ".")):
                rig.submit()

    run(body)
    assert len([record for record in caplog.records if "given up" in record.getMessage()]) == 1


def test_restarts_that_fail_are_tried_again_and_then_given_up(tmp_path, caplog):
    async def body():
        options = ("--start", "fail:99", "--counter", str(tmp_path / "starts"))
        async with running(*options) as rig:
            with pytest.raises(EngineDied):
                await read(rig.submit(DIE))
            await eventually(lambda: rig.client.status.state == "dead")
            assert len(rig.processes) == 1 + MAX_FAILED_STARTS

    run(body)
    assert len([record for record in caplog.records if "given up" in record.getMessage()]) == 1


def test_a_restart_that_fails_once_succeeds_later(tmp_path):
    async def body():
        async with running("--start", "fail:1", "--counter", str(tmp_path / "starts")) as rig:
            with pytest.raises(PoisonRequest):
                await read(rig.submit(DIE))
            await eventually(lambda: rig.client.status.state == "ready")
            assert len(rig.processes) == 4
            assert len(await read(rig.submit())) == 3

    run(body)


def test_the_endpoints_are_private_and_gone_when_nobody_needs_them():
    async def body():
        async with running("--start", "never", until=lambda rig: bool(rig.processes)) as rig:
            folder = rig.processes[0].folder
            assert folder.stat().st_mode & 0o077 == 0
            await rig.supervisor.stop()
            await eventually(lambda: not folder.exists())
        async with running() as rig:
            await eventually(lambda: not rig.processes[0].folder.exists())
            assert len(await read(rig.submit())) == 3

    run(body)


def test_stop_ends_open_sequences_and_the_child():
    async def body():
        async with running() as rig:
            process = rig.processes[0]
            reader = asyncio.create_task(read(rig.submit(HOLD)))
            await asyncio.sleep(0)
            await rig.supervisor.stop()
            with pytest.raises(Unavailable, match="shutting down"):
                await reader
            await eventually(lambda: process.exit_code == 0)
            with pytest.raises(Unavailable, match="shutting down"):
                rig.submit()

    run(body)


def test_stop_waits_while_the_engine_writes_and_a_second_signal_does_not():
    async def body():
        async with running() as rig:
            process = rig.processes[0]
            stop = asyncio.create_task(rig.supervisor.stop(grace=0.05, flush_seconds=600.0))
            await asyncio.sleep(0.3)
            assert process.exit_code is None and not stop.done()
            rig.supervisor.kill()
            await stop
            assert process.exit_code == -signal.SIGKILL

    run(body)


def test_an_engine_that_is_restarted_may_write_for_longer_than_one_may_be_silent(caplog):
    async def body():
        async with running(hang_seconds=0.2) as rig:
            await asyncio.wait_for(rig.supervisor.restart(flush_seconds=0.5), timeout=60)
            assert rig.processes[0].exit_code == 0
            await eventually(lambda: rig.client.status.state == "ready")

    run(body)
    assert not caplog.records


def test_stop_does_not_wait_for_an_engine_that_hangs(monkeypatch):
    async def body():
        async with running() as rig:
            process = rig.processes[0]
            os.kill(process.pid, signal.SIGSTOP)
            monkeypatch.setattr(EngineStatus, "hang", "has said nothing for 5 s")
            await asyncio.wait_for(rig.supervisor.stop(grace=600.0), timeout=60)
            await eventually(lambda: process.exit_code == -signal.SIGKILL)

    run(body)


@pytest.mark.parametrize("unheard", [0.0, 2 * HEARTBEAT], ids=["heard", "unheard"])
def test_stop_does_not_wait_for_an_engine_that_was_stopped_just_before(unheard):
    """What it had sent may be read only when it has been told to stop, and does not mean that it obeys."""

    async def body():
        async with running(hang_seconds=600.0) as rig:
            process = rig.processes[0]
            time.sleep(unheard)  # seconds in which it sends and this process hears nothing
            os.kill(process.pid, signal.SIGSTOP)
            await asyncio.wait_for(rig.supervisor.stop(grace=600.0, flush_seconds=600.0), timeout=60)
            await eventually(lambda: process.exit_code == -signal.SIGKILL)

    run(body)


def test_a_silent_engine_leaves_time_to_write_to_others(monkeypatch):
    monkeypatch.setattr(supervisor_module, "OBEY_BEATS", 10**9)
    monkeypatch.setattr(supervisor_module, "HEARTBEAT_SECONDS", HEARTBEAT)

    async def body():
        async with running(hang_seconds=600.0) as rig:
            process = rig.processes[0]
            os.kill(process.pid, signal.SIGSTOP)
            await asyncio.wait_for(rig.supervisor.stop(grace=600.0, flush_seconds=0.2), timeout=60)
            await eventually(lambda: process.exit_code == -signal.SIGKILL)

    run(body)


def test_stop_does_not_wait_for_an_engine_that_is_still_starting():
    async def body():
        async with running("--start", "never", until=lambda rig: bool(rig.processes)) as rig:
            await rig.supervisor.stop()
            await eventually(lambda: rig.processes[0].exit_code is not None)

    run(body)


def test_the_child_ends_with_its_stdin():
    process = EngineProcess(arguments())
    try:
        process._child.stdin.close()
        assert process._child.wait(60) == EXIT_ORPHAN
    finally:
        process.close()


def test_the_policy_waits_longer_each_time_and_forgets():
    policy = RestartPolicy()
    delays = [policy.after_death(float(i), was_ready=True) for i in range(8)]
    assert delays == [*RESTART_DELAYS, RESTART_DELAYS[-1], RESTART_DELAYS[-1]]
    assert policy.after_death(WINDOW_SECONDS + 100, was_ready=True) == RESTART_DELAYS[0]


def test_the_policy_gives_up_on_failed_starts_within_the_window():
    policy = RestartPolicy(max_failed_starts=2)
    assert policy.after_death(0.0, was_ready=False) is not None
    assert policy.after_death(WINDOW_SECONDS + 1, was_ready=False) is not None
    assert policy.after_death(WINDOW_SECONDS + 2, was_ready=False) is None
