"""A whole HTTP side that keeps files and batches, and openai-python's client for it."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import openai

from tests.server.api.scripted import Server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


class Clock:
    now = 1_790_000_000.0

    def __call__(self):
        return self.now


def client_of(server, key="none"):
    return openai.AsyncOpenAI(
        base_url="http://localhost/v1",
        api_key=key,
        max_retries=0,
        http_client=httpx.AsyncClient(transport=httpx.ASGITransport(server.app)),
    )


@asynccontextmanager
async def serving(tmp_path, reply="yes", window=8, **settings):
    server = Server(reply, data_dir=str(tmp_path), **settings)
    async with server.running_batches(window):
        yield server, client_of(server)


def line(custom_id, endpoint=COMPLETIONS, **body):
    asked = {"prompt": f"Say {custom_id}", "max_tokens": 4} if endpoint == COMPLETIONS else {}
    if endpoint == CHAT:
        asked = {"messages": [{"role": "user", "content": f"Say {custom_id}"}], "max_tokens": 4}
    return {"custom_id": custom_id, "method": "POST", "url": endpoint, "body": asked | body}


def jsonl(lines):
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


async def begin(client, lines, endpoint=COMPLETIONS, **kwargs):
    content = lines if isinstance(lines, bytes) else jsonl(lines)
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **kwargs)


async def ended(client, batch):
    for _ in range(2000):
        batch = await client.batches.retrieve(batch.id)
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            return batch
        await asyncio.sleep(0.005)
    raise AssertionError(f"still {batch.status}: {batch.request_counts}")


async def until(client, batch, holds):
    for _ in range(2000):
        batch = await client.batches.retrieve(batch.id)
        if holds(batch):
            return batch
        await asyncio.sleep(0.005)
    raise AssertionError(f"never so: {batch}")


async def lines_of(client, file_id):
    if file_id is None:
        return {}
    found = [json.loads(each) for each in (await client.files.content(file_id)).content.splitlines()]
    by_id = {each["custom_id"]: each for each in found}
    assert len(by_id) == len(found), "each line once"
    return by_id
