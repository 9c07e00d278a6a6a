"""A batch whose server is killed, again and again, and in the end its engine: each line is answered once."""

import json
import signal

import openai
import pytest

from tests.e2e.server_process import ServerProcess

pytestmark = pytest.mark.processes


def requests(count):
    lines = [
        {
            "custom_id": f"line-{i}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": f"{i} and one is", "max_tokens": 3, "temperature": 0, "ignore_eos": True},
        }
        for i in range(count)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def client_of(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.mark.long
@pytest.mark.parametrize(("count", "kills"), [(20, 1), pytest.param(1000, 5, marks=pytest.mark.timeout(1800))])
def test_a_batch_outlives_kills_of_its_server(tmp_path, count, kills):
    server, ended = None, []
    try:
        for life in range(kills + 1):
            server = ServerProcess("--kv-blocks", "200", "--data-dir", str(tmp_path))
            client = client_of(server)
            if life == 0:
                file = client.files.create(file=("in.jsonl", requests(count)), purpose="batch")
                made = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
            least = count * (life + 1) // (kills + 2)

            def far_enough(client=client, least=least, made=made):
                now = client.batches.retrieve(made.id)
                return now if now.request_counts.completed >= least else None

            counts = server.wait_until(far_enough, 600).request_counts
            if life == kills:
                server.engine.kill()
                break
            ended.append(counts.completed)
            server.stop(signal.SIGKILL)

        def done():
            now = client.batches.retrieve(made.id)
            return now if now.status in ("completed", "failed") else None

        batch = server.wait_until(done, 900)
        assert batch.status == "completed"
        assert (batch.request_counts.completed, batch.request_counts.failed) == (count, 0)
        answers = [json.loads(line) for line in client.files.content(batch.output_file_id).content.splitlines()]
        assert [answer["custom_id"] for answer in answers] == [f"line-{i}" for i in range(count)]
        assert all(answer["response"]["status_code"] == 200 for answer in answers)
        assert all(answer["response"]["body"]["usage"]["completion_tokens"] == 3 for answer in answers)
        run_here = server.metrics()['headrace_batch_lines_total{outcome="completed"}']
        assert run_here <= count - ended[-1], "none of those that had ended was run again"
    finally:
        if server is not None:
            server.stop()
