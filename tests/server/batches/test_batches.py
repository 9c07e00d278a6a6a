"""Batches as openai-python's client sees them, over the whole HTTP side and an engine that follows a script."""

import openai
import pytest

from scheduler.types.messages import IDLE_PRIORITY, FinishReason, Output
from server.api.batches.lines import make_idle
from server.errors import QueueFull
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


@pytest.mark.parametrize("endpoint", [COMPLETIONS, CHAT])
def test_a_batch_runs_at_idle_priority(tmp_path, endpoint):
    async def test():
        async with serving(tmp_path) as (server, client):
            asked = [line(f"q{i}", endpoint) for i in range(20)]
            batch = await begin(client, asked, endpoint, metadata={"for": "a test"})
            assert (batch.status, batch.endpoint, batch.completion_window) == ("validating", endpoint, "24h")
            assert batch.expires_at == batch.created_at + 24 * 3600
            batch = await ended(client, batch)
            assert batch.status == "completed", batch
            assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (
                20,
                20,
                0,
            )
            assert batch.metadata == {"for": "a test"}
            assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
            assert batch.error_file_id is None
            found = await lines_of(client, batch.output_file_id)
            assert list(found) == [each["custom_id"] for each in asked], "in the order of the input"
            one = found["q3"]
            assert one["error"] is None
            assert one["response"]["status_code"] == 200
            body = one["response"]["body"]
            text = body["choices"][0]["text"] if endpoint == COMPLETIONS else body["choices"][0]["message"]["content"]
            assert text == "yes"
            assert body["usage"]["completion_tokens"] == 4
            assert {request.priority for request in server.process.requests} == {IDLE_PRIORITY}
            output = await client.files.retrieve(batch.output_file_id)
            assert output.purpose == "batch_output"
            assert [each.id async for each in client.batches.list()] == [batch.id]
            metrics = (await server.client.get("/metrics")).text
            assert 'headrace_batch_lines_total{outcome="completed"} 20.0' in metrics
            assert 'headrace_batches_ended_total{status="completed"} 1.0' in metrics
            assert "headrace_time_to_first_token_seconds_count 0.0" in metrics, "nobody waited"
            assert 'headrace_tenant_sequences_total{tenant="anybody"} 20.0' in metrics

    run(test)


def test_lines_of_another_api_run_at_idle_priority_too(tmp_path):
    async def test():
        async with serving(tmp_path) as (server, client):
            asked = [line(f"q{i}", "/v1/responses", input="Say yes", max_output_tokens=16) for i in range(3)]
            batch = await ended(client, await begin(client, asked, "/v1/responses"))
            assert (batch.status, batch.request_counts.completed) == ("completed", 3), batch
            found = await lines_of(client, batch.output_file_id)
            assert {each["response"]["body"]["output"][0]["content"][0]["text"] for each in found.values()} == {"yes"}
            assert {request.priority for request in server.process.requests} == {IDLE_PRIORITY}
            name = found["q1"]["response"]["body"]["id"]
            for path in (f"/v1/responses/{name}", f"/v1/requests/{name}"):
                answer = await server.client.get(path)
                assert answer.status_code == 404, "what others may ask for is not pushed out"

    run(test)


def test_a_batch_runs_nothing_that_it_cannot_hold_back():
    with pytest.raises(TypeError, match="a batch cannot have requests that become a str"):
        make_idle("tokens")


def test_a_request_that_is_refused_stands_in_the_error_file(tmp_path):
    async def test():
        async with serving(tmp_path) as (_, client):
            asked = [line("good"), line("hot", temperature=99), line("odd", colour="red")]
            batch = await ended(client, await begin(client, asked))
            assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 2)
            assert set(await lines_of(client, batch.output_file_id)) == {"good"}
            errors = await lines_of(client, batch.error_file_id)
            assert errors["hot"]["response"]["status_code"] == 400
            assert errors["hot"]["response"]["body"]["error"]["param"] == "temperature"
            assert errors["odd"]["response"]["body"]["error"]["code"] == "unknown_field"

    run(test)


GOOD = line("a")
BAD_LINES = [
    (b"nonsense\n", "invalid_json_line", None),
    (b"[1]\n", "invalid_json_line", None),
    (jsonl([{**GOOD, "body": 3}]), "invalid_json_line", None),
    (jsonl([{**GOOD, "custom_id": 3}]), "invalid_custom_id", "custom_id"),
    (jsonl([{**GOOD, "custom_id": ""}]), "invalid_custom_id", "custom_id"),
    (jsonl([{**GOOD, "method": "GET"}]), "invalid_method", "method"),
    (jsonl([{**GOOD, "url": CHAT}]), "invalid_url", "url"),
    (jsonl([{**GOOD, "more": 1}]), "unknown_field", "more"),
    (jsonl([{name: value for name, value in GOOD.items() if name != "body"}]), "missing_required_parameter", "body"),
    (jsonl([line("a", model="huge")]), "model_not_found", "body.model"),
    (jsonl([line("a", stream=True)]), "invalid_value", "body.stream"),
    (b" " * 5000 + jsonl([GOOD]), "line_too_large", None),
    (jsonl([line("first")]), "duplicate_custom_id", "custom_id"),
]


@pytest.mark.parametrize(("data", "code", "param"), BAD_LINES)
def test_what_is_no_line_of_the_batch_fails_it_by_its_number(tmp_path, data, code, param):
    async def test():
        async with serving(tmp_path, max_body_bytes=2048) as (server, client):
            batch = await ended(client, await begin(client, jsonl([line("first")]) + b"\n" + data))
            assert batch.status == "failed"
            (error,) = batch.errors.data
            assert (error.code, error.line, error.param) == (code, 3, param)
            assert batch.output_file_id is None
            assert not server.process.requests, "none of it was run"

    run(test)


def test_a_file_has_a_first_error_for_each_line_and_not_too_many_lines(tmp_path):
    async def test():
        async with serving(tmp_path, max_batch_lines=3) as (_, client):
            batch = await ended(client, await begin(client, b"x\n" * 5))
            assert [error.line for error in batch.errors.data] == [1, 2, 3, 4, 5]
            batch = await ended(client, await begin(client, [line(f"{i}") for i in range(4)]))
            assert [(error.code, error.line) for error in batch.errors.data] == [("too_many_requests", 4)]
            batch = await ended(client, await begin(client, b"\n"))
            assert [error.code for error in batch.errors.data] == ["empty_file"]

    run(test)


def test_what_cannot_be_a_batch_is_refused_at_once(tmp_path):
    async def test():
        async with serving(tmp_path) as (_, client):
            file = await client.files.create(file=("a", jsonl([line("a")])), purpose="batch")
            other = await client.files.create(file=("a", jsonl([line("a")])), purpose="evals")
            asked = {"input_file_id": file.id, "endpoint": COMPLETIONS, "completion_window": "24h"}
            with pytest.raises(openai.NotFoundError):
                await client.batches.create(**asked | {"input_file_id": "file-1"})
            for wrong, param in (
                ({"input_file_id": other.id}, "input_file_id"),
                ({"endpoint": "/v1/models"}, "endpoint"),
                ({"completion_window": "1h"}, "completion_window"),
                ({"metadata": {"a" * 65: "b"}}, "metadata"),
                ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
            ):
                with pytest.raises(openai.BadRequestError) as refused:
                    await client.batches.create(**asked | wrong)
                assert refused.value.param.startswith(param)

    run(test)


def test_a_cancelled_batch_keeps_what_has_ended(tmp_path):
    async def test():
        async with serving(tmp_path, window=2) as (server, client):
            asked = [line(f"q{i}") for i in range(10)]
            batch = await begin(client, asked)
            await until(client, batch, lambda now: now.request_counts.completed >= 2)
            server.process.gate.clear()
            done = (await client.batches.retrieve(batch.id)).request_counts.completed
            with pytest.raises(openai.ConflictError, match=batch.id):
                await client.files.delete(batch.input_file_id)
            batch = await client.batches.cancel(batch.id)
            assert batch.status in ("cancelling", "cancelled")
            batch = await ended(client, batch)
            server.process.gate.set()
            assert batch.status == "cancelled"
            assert batch.cancelling_at <= batch.cancelled_at
            assert batch.request_counts.completed >= done
            assert len(await lines_of(client, batch.output_file_id)) == batch.request_counts.completed < 10
            assert not server.engine.open_count, "what was under way is given up"
            with pytest.raises(openai.ConflictError, match="cannot be cancelled"):
                await client.batches.cancel(batch.id)
            await client.files.delete(batch.input_file_id)

    run(test)


def test_a_batch_that_takes_too_long_expires_with_what_it_has(tmp_path):
    async def test():
        clock = Clock()
        server = Server("yes", data_dir=str(tmp_path), now=clock)
        async with server.running_batches(window=2):
            client = client_of(server)
            server.process.gate.clear()
            batch = await until(
                client, await begin(client, [line(f"q{i}") for i in range(5)]), lambda now: now.status == "in_progress"
            )
        server.process.gate.set()
        clock.now += 24 * 3600 + 1
        server = Server("yes", data_dir=str(tmp_path), now=clock)
        async with server.running_batches(window=2):
            client = client_of(server)
            batch = await ended(client, batch)
            assert batch.status == "expired"
            errors = await lines_of(client, batch.error_file_id)
            assert list(errors) == [f"q{i}" for i in range(5)]
            assert errors["q0"]["response"] is None
            assert errors["q0"]["error"]["code"] == "batch_expired"

    run(test)


def test_a_batch_goes_on_in_the_next_server_and_runs_no_line_twice(tmp_path):
    async def test():
        seen = []
        for life in range(3):
            server = Server("yes", data_dir=str(tmp_path))
            async with server.running_batches(window=2):
                client = client_of(server)
                if life == 0:
                    batch = await begin(client, [line(f"q{i}") for i in range(30)])
                if life == 2:
                    batch = await ended(client, batch)
                else:
                    least = 10 * (life + 1)
                    await until(client, batch, lambda now, least=least: now.request_counts.completed >= least)
                counts = (await client.batches.retrieve(batch.id)).request_counts
                seen.append(counts.completed)
                if life == 2:
                    assert len(await lines_of(client, batch.output_file_id)) == 30
                    assert len(server.process.requests) <= 30 - seen[1]  # some more had ended when the last server did
        assert seen == sorted(seen) and seen[-1] == 30

    run(test)


def test_when_the_server_is_at_fault_a_line_is_tried_again(tmp_path, monkeypatch):
    async def test():
        monkeypatch.setattr("server.batches.batch_run._FIRST_PAUSE", 0.001)
        async with serving(tmp_path, max_waiting=1) as (server, client):
            busy, refused = server.engine.ensure_room, []

            def sometimes(sequences):
                if len(refused) < 5:
                    refused.append(sequences)
                    raise QueueFull("full")
                busy(sequences)

            server.engine.ensure_room = sometimes
            batch = await ended(client, await begin(client, [line(f"q{i}") for i in range(3)]))
            assert (batch.request_counts.completed, len(refused)) == (3, 5)
            server.process.fail = {1: Output(request_id="", finish_reason=FinishReason.ERROR, error="a defect")}
            batch = await ended(client, await begin(client, [line("q")]))
            errors = await lines_of(client, batch.error_file_id)
            assert errors["q"]["response"]["body"]["error"]["code"] == "generation_failed"
            metrics = (await server.client.get("/metrics")).text
            assert "headrace_batch_line_retries_total 7.0" in metrics, "five times busy, and two of three attempts"

    run(test)


def test_files_and_batches_belong_to_their_key(tmp_path):
    async def test():
        keys = {"api_key": ["first-key", "second-key"], "key_names": ["first", "second"]}
        async with serving(tmp_path, **keys) as (server, _):
            first, second = client_of(server, "first-key"), client_of(server, "second-key")
            batch = await ended(first, await begin(first, [line("a")]))
            for call in (
                second.batches.retrieve(batch.id),
                second.batches.cancel(batch.id),
                second.files.retrieve(batch.input_file_id),
                second.files.content(batch.output_file_id),
                second.files.delete(batch.output_file_id),
                second.batches.create(input_file_id=batch.input_file_id, endpoint=COMPLETIONS, completion_window="24h"),
            ):
                with pytest.raises(openai.NotFoundError):
                    await call
            assert [each.id async for each in second.files.list()] == []
            assert [each.id async for each in second.batches.list()] == []
            assert server.process.requests[0].tenant == "first"

    run(test)
