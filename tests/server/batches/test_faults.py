"""What goes wrong with one batch, line, disk or key: who is hindered by it, what is lost, and what is said."""

import asyncio
import contextlib
import errno
import json
import threading
from functools import partial

import openai
import pytest

from server.to_thread import by_size
from tests.server.api.keyed import keyed_server, used
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


# --- keys ---


@pytest.fixture
def keyed(tmp_path):
    """Makes a server with these keys, which keeps files."""
    return partial(keyed_server, tmp_path / "keys.yaml", reply="yes", data_dir=str(tmp_path / "data"))


def test_lines_run_as_the_very_key_that_made_their_batch(keyed):
    async def test():
        keys = {
            "boss": {"tenant": "lab", "cache_salt": "of-the-boss"},
            "intern": {"tenant": "lab", "models": "[small]", "highest_priority": 3},
        }
        server = keyed(keys)
        async with server.running_batches():
            intern = client_of(server, "intern-key")
            batch = await ended(intern, await begin(intern, [line("a", model="org/small")]))
            assert [error.code for error in batch.errors.data] == ["model_not_found"]
            lines = [line("mine", model="small"), line("urgent", priority=0)]
            batch = await ended(intern, await begin(intern, lines))
            errors = await lines_of(intern, batch.error_file_id)
            assert errors["urgent"]["response"]["body"]["error"]["param"] == "priority"
            assert [request.cache_salt for request in server.process.requests] == [""]
            assert (await used(server)).keys() == {"intern"}
            boss = client_of(server, "boss-key")
            await ended(boss, await begin(boss, [line("a", model="org/small")]))
            assert server.process.requests[-1].cache_salt

    run(test)


def test_a_batch_whose_key_is_gone_waits_and_hinders_nobody(keyed, monkeypatch):
    async def test():
        monkeypatch.setattr("server.batches.batch_run._KEY_SECONDS", 0.001)
        monkeypatch.setattr("server.batches.batch_run._FIRST_PAUSE", 0.001)
        server = keyed({"ann": {}, "ben": {}})
        both = server.context.keys.take, server.keys._file.current
        async with server.running_batches(window=2):
            ann, ben = client_of(server, "ann-key"), client_of(server, "ben-key")
            server.process.gate.clear()
            first = await begin(ann, LINES)
            await until(ann, first, lambda now: now.status == "in_progress")
            take, file = both
            take([entry for entry in file.entries if entry.name == "ben"], file.weights)
            server.process.gate.set()
            second = await ended(ben, await begin(ben, LINES))
            assert (second.status, second.request_counts.completed) == ("completed", 10)
            take(file.entries, file.weights)
            begun = await ann.batches.retrieve(first.id)
            assert begun.status == "in_progress" and begun.request_counts.completed <= 2
            first = await ended(ann, first)
            assert first.request_counts.completed == 10, "the key is there again"

    run(test)


def test_a_key_of_another_tenant_under_the_same_name_runs_nothing(keyed):
    async def test():
        server = keyed({"ann": {"tenant": "lab"}})
        assert server.context.keys.of_key("ann", "lab").key == "ann"
        assert server.context.keys.of_key("ann", "ann") is None

    run(test)


def test_a_line_is_one_request_of_its_key_however_often_it_is_tried(keyed, monkeypatch):
    async def test():
        monkeypatch.setattr("server.batches.batch_run._FIRST_PAUSE", 0.001)
        server = keyed({"ann": {}})
        async with server.running_batches():
            client, refusals, ensure = client_of(server, "ann-key"), [], server.engine.ensure_room

            def sometimes(sequences):
                refusals.append(sequences)
                if len(refusals) < 4:
                    raise openai_queue_full()
                ensure(sequences)

            server.engine.ensure_room = sometimes
            await ended(client, await begin(client, [line("a"), line("hot", temperature=99)]))
            requests, errors, limited, *_ = (await used(server))["ann"]
            assert (requests, errors, limited) == (4, 1, 0), "the upload, the batch, two lines"

    run(test)


def openai_queue_full():
    from server.errors import QueueFull

    return QueueFull("full")


def test_a_broken_line_is_given_up_also_after_it_was_busy(tmp_path, monkeypatch):
    async def test():
        monkeypatch.setattr("server.batches.batch_run._FIRST_PAUSE", 0.001)
        async with serving(tmp_path) as (server, client):
            asked = []

            def never(sequences):
                asked.append(sequences)
                if len(asked) <= 2:
                    raise openai_queue_full()
                raise ValueError("a defect")

            server.engine.ensure_room = never
            batch = await ended(client, await begin(client, [line("a")]))
            assert (batch.status, batch.request_counts.failed, len(asked)) == ("completed", 1, 5)

    run(test)


def test_one_tenant_has_not_all_the_batches_or_files(keyed, monkeypatch):
    async def test():
        monkeypatch.setattr("server.batches.batches.MOST_OPEN_OF_ONE", 2)
        monkeypatch.setattr("server.batches.file_store.MOST_FILES", 3)
        server = keyed({"ann": {}, "ben": {}})
        async with server.running_batches():
            ann, ben = client_of(server, "ann-key"), client_of(server, "ben-key")
            server.process.gate.clear()
            for _ in range(2):
                await begin(ann, LINES)
            with pytest.raises(openai.RateLimitError, match="there may be 2"):
                await begin(ann, LINES)
            with pytest.raises(openai.InternalServerError, match="may be 3: delete some"):
                await ann.files.create(file=("a", b"x"), purpose="batch")
            await begin(ben, LINES)
            server.process.gate.set()

    run(test)


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
