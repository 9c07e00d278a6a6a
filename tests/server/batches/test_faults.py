"""What goes wrong with one batch, line, disk or key: who is hindered by it, what is lost, and what is said."""

import asyncio
import contextlib
import errno
import json
import threading

import openai
import pytest

from server.to_thread import by_size
from tests.server.api.scripted import Server, run
from tests.server.batches.served import (
    CHAT,
    COMPLETIONS,
    Clock,
    begin,
    client_of,
    ended,
    jsonl,
    line,
    lines_of,
    serving,
    until,
)

LINES = [line(f"q{i}") for i in range(10)]
EMBEDDINGS = "/v1/embeddings"


class Held:
    """A function that waits in its thread until it is let go."""

    def __init__(self, monkeypatch, target, while_held=lambda *args: True):
        self.reached, self.release = threading.Event(), threading.Event()
        module, _, name = target.rpartition(".")
        real = getattr(__import__(module, fromlist=[name]), name)

        def held(*args):
            if while_held(*args):
                self.reached.set()
                assert self.release.wait(60)
            return real(*args)

        monkeypatch.setattr(target, held)

    async def until_reached(self):
        while not self.reached.is_set():
            await asyncio.sleep(0.002)


# --- a stop in the midst of a write ---


def test_a_stop_while_the_results_are_kept_loses_none(tmp_path, monkeypatch):
    async def test():
        held = Held(monkeypatch, "server.batches.batch_run._settle")
        async with serving(tmp_path) as (_, client):
            batch = await begin(client, LINES)
            await held.until_reached()
            asyncio.get_running_loop().call_later(0.02, held.release.set)
        async with serving(tmp_path) as (_, client):
            batch = await ended(client, batch)
            assert batch.status == "completed"
            assert len(await lines_of(client, batch.output_file_id)) == 10

    run(test)


def test_an_upload_that_is_given_up_is_kept_whole_or_not_at_all(tmp_path, monkeypatch):
    async def test():
        held = Held(monkeypatch, "server.batches.file_store.insert_file")
        async with serving(tmp_path) as (server, client):
            form = b'--xx\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            form += b'--xx\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nabc\r\n--xx--\r\n'
            upload = server.client.post("/v1/files", content=form, headers={"content-type": FORM})
            call = asyncio.create_task(upload)
            await held.until_reached()
            call.cancel()
            held.release.set()
            with contextlib.suppress(asyncio.CancelledError):
                await call
            files = [file async for file in client.files.list()]
            for file in files:
                assert (await client.files.content(file.id)).content == b"abc"
            assert server.batches.files.held == 3 * len(files)

    run(test)


FORM = "multipart/form-data; boundary=xx"


def test_a_cancel_is_not_undone_by_the_end_of_the_check(tmp_path, monkeypatch):
    async def test():
        held = Held(monkeypatch, "server.batches.batch_run.read_input")
        async with serving(tmp_path) as (server, client):
            batch, seen = await begin(client, LINES), []
            (kept,) = server.batches._runs.values()
            becomes = type(kept.batch).becomes
            monkeypatch.setattr(
                type(kept.batch), "becomes", lambda self, status, now: (seen.append(status), becomes(self, status, now))
            )
            await held.until_reached()
            held.release.set()
            cancelled = await client.batches.cancel(batch.id)
            assert cancelled.status in ("cancelling", "cancelled")
            assert (await ended(client, batch)).status == "cancelled"
            assert "in_progress" not in seen and not server.process.requests

    run(test)


def test_a_full_disk_at_the_last_write_leaves_nothing(tmp_path, monkeypatch):
    async def test():
        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        async with serving(tmp_path) as (server, client):
            monkeypatch.setattr("server.batches.file_store.os.fsync", full)
            with pytest.raises(openai.InternalServerError, match="No space left") as refused:
                await client.files.create(file=("a", b"x" * 100), purpose="batch")
            assert refused.value.status_code == 507
            assert server.batches.files.held == 0
            assert not [*(tmp_path / "files").iterdir(), *(tmp_path / "begun").iterdir()]

    run(test)


def test_a_content_that_somebody_removed_is_not_there(tmp_path):
    async def test():
        async with serving(tmp_path) as (server, client):
            file = await client.files.create(file=("a", b"x"), purpose="batch")
            server.batches.files.path(file.id).unlink()
            with pytest.raises(openai.NotFoundError, match="is no more"):
                await client.files.content(file.id)
            batch = await ended(
                client,
                await client.batches.create(input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h"),
            )
            assert [error.code for error in batch.errors.data] == ["file_not_found"]

    run(test)


# --- one batch that cannot be run ---


def test_a_sweep_that_fails_stops_no_batch(tmp_path, monkeypatch, caplog):
    async def test():
        async def broken(self):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr("server.batches.file_store.FileStore.expired", broken)
        async with serving(tmp_path) as (_, client):
            for _ in range(2):
                assert (await ended(client, await begin(client, LINES))).status == "completed"
        assert "could not be removed" in caplog.text

    run(test)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + jsonl(LINES),
        jsonl([*LINES[:9], line("q9")]).replace(b'"max_tokens": 4}}\n', b'"max_tokens": 1' + b"0" * 400 + b"}}\n", 1),
        jsonl(LINES).replace(b'"max_tokens": 4', b'"max_tokens": 4, "n": 1' + b"0" * 30, 1),
    ],
    ids=["byte order mark", "huge max_tokens", "huge n"],
)
def test_a_line_that_is_odd_is_answered_with_the_others(tmp_path, content):
    async def test():
        async with serving(tmp_path) as (_, client):
            batch = await ended(client, await begin(client, content))
            assert batch.status == "completed"
            assert batch.request_counts.completed + batch.request_counts.failed == 10
            assert batch.request_counts.completed >= 9

    run(test)


def test_a_batch_that_always_fails_ends_alone_with_a_reason(tmp_path, monkeypatch):
    async def test():
        monkeypatch.setattr("server.batches.batch_run._DEFECT_SECONDS", 0.001)
        async with serving(tmp_path) as (server, client):
            real = server.batches._lines.ended

            async def poisoned(batch, number, outcome, answer):
                if batch.metadata and number == 4:
                    raise ValueError("a defect")
                await real(batch, number, outcome, answer)

            server.batches._lines.ended = poisoned
            bad = await begin(client, LINES, metadata={"poisoned": "yes"})
            good = await ended(client, await begin(client, LINES))
            assert good.request_counts.completed == 10
            bad = await ended(client, bad)
            assert bad.status == "failed"
            (error,) = bad.errors.data
            assert "failed on this batch 5 times" in error.message
            done, left = await lines_of(client, bad.output_file_id), await lines_of(client, bad.error_file_id)
            assert len(done) + len(left) == 10 and left["q3"]["error"]["code"] == "batch_failed"

    run(test)


def test_an_input_that_has_changed_is_an_error_of_its_line(tmp_path):
    async def test():
        async with serving(tmp_path, window=1) as (server, client):
            server.process.gate.clear()
            batch = await begin(client, LINES)
            await until(client, batch, lambda now: server.process.requests)
            path = server.batches.files.path(batch.input_file_id)
            path.write_bytes(path.read_bytes().replace(b'"custom_id": "q7"', b'"custom_id": ]q7"'))
            server.process.gate.set()
            batch = await ended(client, batch)
            assert (batch.status, batch.request_counts.completed) == ("completed", 9)
            assert (await lines_of(client, batch.error_file_id))["q7"]["response"]["status_code"] == 500

    run(test)


def test_a_disk_that_is_full_for_long_ends_no_batch(tmp_path, monkeypatch):
    async def test():
        monkeypatch.setattr("server.batches.batch_run._DEFECT_SECONDS", 0.0)
        async with serving(tmp_path) as (server, client):
            real, times = server.batches.files.begin, []

            def full(*args, **kwargs):
                times.append(1)
                if len(times) < 9:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(*args, **kwargs)

            file = await client.files.create(file=("in", jsonl(LINES)), purpose="batch")
            server.batches.files.begin = full
            batch = await client.batches.create(input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h")
            assert (await ended(client, batch)).status == "completed"

    run(test)


def test_what_a_batch_cannot_have_is_refused_in_its_file(tmp_path):
    async def test():
        async with serving(tmp_path) as (_, client):
            asked = [line("a", "/v1/responses", input="x", background=True)]
            batch = await ended(client, await begin(client, asked, "/v1/responses"))
            assert [error.param for error in batch.errors.data] == ["body.background"]

    run(test)


# --- what others feel of it ---


def test_lines_and_prompts_of_clients_do_not_stand_in_one_line(tmp_path):
    async def test():
        async with serving(tmp_path) as (_, client):
            release = threading.Event()
            prompt = asyncio.create_task(by_size(300_000, lambda: release.wait(60)))
            await asyncio.sleep(0)
            large = [line("large", CHAT, messages=[{"role": "user", "content": "x" * 300_000}])]
            batch = await ended(client, await begin(client, large, CHAT))
            assert batch.request_counts.failed == 1, "longer than the context"
            release.set()
            assert await prompt

    run(test)


def test_the_window_counts_sequences(tmp_path):
    async def test():
        async with serving(tmp_path, window=8) as (server, client):
            server.process.gate.clear()
            asked = [line(f"q{i}", EMBEDDINGS, input=["a", "b", "c"]) for i in range(20)]
            asked += [line("all", EMBEDDINGS, input=["a"] * 30)]
            batch = await begin(client, asked, EMBEDDINGS)
            await until(client, batch, lambda now: server.engine.open_count)
            most = 0
            server.process.gate.set()
            while (await client.batches.retrieve(batch.id)).status != "completed":
                most = max(most, server.engine.open_count)
                await asyncio.sleep(0)
            assert most <= 30
            counted = await client.batches.retrieve(batch.id)
            assert counted.request_counts.completed == 21

    run(test)


def test_a_file_is_put_in_order_in_the_thread_that_reads_it(tmp_path, monkeypatch):
    async def test():
        threads = []
        from server.batches import input

        real = input.run_order
        monkeypatch.setattr(
            "server.batches.input.run_order",
            lambda shapes: (threads.append(threading.current_thread()), real(shapes))[1],
        )
        async with serving(tmp_path) as (_, client):
            assert (await ended(client, await begin(client, LINES))).status == "completed"
        assert threads and threading.main_thread() not in threads

    run(test)


# --- what is kept ---


def test_batches_are_forgotten_with_their_results_and_the_room_comes_back(tmp_path):
    async def test():
        clock = Clock()
        server = Server("yes", data_dir=str(tmp_path), now=clock)
        async with server.running_batches():
            client = client_of(server)
            kept = {"anchor": "created_at", "seconds": 3600}
            batch = await ended(client, await begin(client, LINES, output_expires_after=kept))
            clock.now += 24 * 3600
            await server.batches._sweep()
            assert await client.batches.retrieve(batch.id)
            clock.now += 3600
            await server.batches._sweep()
            with pytest.raises(openai.NotFoundError):
                await client.batches.retrieve(batch.id)
            database, free = server.batches._database, []
            query = "INSERT INTO files (id, owner, purpose, name, bytes, created) VALUES ('f', '', '', ?, 0, 0)"
            await database.run(lambda rows: rows.execute(query, ["x" * 2**20]))
            await database.run(lambda rows: rows.execute("DELETE FROM files WHERE id = 'f'"))
            for _ in range(2):
                free += await database.run(lambda rows: rows.execute("PRAGMA freelist_count").fetchone())
                await database.shrink()
            assert free[0] >= 256 and free[1] <= 1

    run(test)


@pytest.mark.parametrize("seconds", ["3600" + "0" * 40, "000000003600" + "9" * 30, "9" * 5000])
def test_a_time_of_many_digits_is_refused(tmp_path, seconds):
    async def test():
        async with serving(tmp_path) as (_, client):
            with pytest.raises(openai.BadRequestError, match="must be a whole number"):
                after = {"anchor": "created_at", "seconds": seconds[:1000]}
                await client.files.create(file=("a", b"x"), purpose="batch", expires_after=after)

    run(test)


@pytest.mark.parametrize("field", ["input_file_id", "metadata", "custom_id"])
def test_half_a_surrogate_pair_is_refused(tmp_path, field):
    async def test():
        async with serving(tmp_path) as (server, client):
            file = await client.files.create(file=("a", jsonl(LINES)), purpose="batch")
            asked = {"input_file_id": file.id, "endpoint": COMPLETIONS, "completion_window": "24h"}
            if field == "custom_id":
                batch = await ended(client, await begin(client, jsonl(LINES).replace(b'"q3"', b'"\\ud800"')))
                assert [error.line for error in batch.errors.data] == [4]
                return
            asked |= {"input_file_id": "\ud800"} if field == "input_file_id" else {"metadata": {"a": "\ud800"}}
            answer = await server.post("/v1/batches", json.dumps(asked).encode())
            assert answer.status_code in (400, 404), answer.text

    run(test)
