"""Whose a batch is: as whom its lines run, what becomes of it when the key is gone, and how much one tenant may have."""

from functools import partial

import openai
import pytest

from server.errors import QueueFull
from tests.server.api.keyed import keyed_server, used
from tests.server.api.scripted import run
from tests.server.batches.served import begin, client_of, ended, line, lines_of, serving, until

LINES = [line(f"q{i}") for i in range(10)]


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
                    raise QueueFull("full")
                ensure(sequences)

            server.engine.ensure_room = sometimes
            await ended(client, await begin(client, [line("a"), line("hot", temperature=99)]))
            requests, errors, limited, *_ = (await used(server))["ann"]
            assert (requests, errors, limited) == (4, 1, 0), "the upload, the batch, two lines"

    run(test)


def test_a_broken_line_is_given_up_also_after_it_was_busy(tmp_path, monkeypatch):
    async def test():
        monkeypatch.setattr("server.batches.batch_run._FIRST_PAUSE", 0.001)
        async with serving(tmp_path) as (server, client):
            asked = []

            def never(sequences):
                asked.append(sequences)
                if len(asked) <= 2:
                    raise QueueFull("full")
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
