"""What an engine tells of its blocks: asked for while somebody wants to know, and passed on without a gap."""

import asyncio
import json

import pytest

from scheduler.router.block_index import BlockIndex
from scheduler.types.block_changes import BlockChanges, RemovedBlocks, StoredBlocks
from scheduler.types.messages import PublishBlocks
from server.api.engine_blocks import BlockStream
from server.engines.published import blocks as published_blocks
from server.engines.published.blocks import PublishedBlocks
from tests.server.api.scripted import Server
from tests.server.api.scripted import run as run_scripted


def came(*names, tier="device", anew=False):
    stored = [StoredBlocks(tier=tier, names=list(names), tokens=[32] * len(names), parents=[None] * len(names))]
    return BlockChanges(stored=stored, anew=anew)


def went(*names, tier="device"):
    return BlockChanges(removed=[RemovedBlocks(tier=tier, names=list(names))])


@pytest.fixture
def sent():
    return []


@pytest.fixture
def blocks(sent):
    return PublishedBlocks(BlockIndex(), sent.append)


async def followed(subscription, count):
    """What a reader knows after so many changes."""
    index = BlockIndex()
    for _ in range(count):
        index.change(await asyncio.wait_for(anext(subscription), 10))
    return {(tier, name) for tier, name, _ in index.contents()}


def test_an_engine_is_asked_only_while_somebody_wants_to_know(blocks, sent):
    blocks.engine_ready()
    blocks.changed(came(b"a"))
    assert not sent and not len(blocks.index)
    first, second = blocks.subscribe(), blocks.subscribe()
    assert sent == [PublishBlocks()]
    blocks.changed(came(b"a", anew=True))
    blocks.engine_ended()
    assert not len(blocks.index)
    blocks.engine_ready()
    assert sent == [PublishBlocks(), PublishBlocks()], "the new one is asked, too"
    first.close()
    assert len(sent) == 2
    second.close()
    assert sent[2:] == [PublishBlocks(publish=False)] and not len(blocks.index)
    blocks.keep()
    blocks.subscribe().close()
    assert sent[3:] == [PublishBlocks()]


def test_a_reader_gets_what_is_there_and_what_changes(blocks, monkeypatch):
    monkeypatch.setattr(published_blocks, "_MOST_AT_ONCE", 2)

    async def body():
        blocks.keep()
        blocks.changed(came(b"a", b"b", b"c", anew=True))
        blocks.changed(came(b"a", tier="host"))
        subscription = blocks.subscribe()
        parts = [await anext(subscription) for _ in range(2)]
        assert [part.anew for part in parts] == [True, False]
        assert [len(stored.names) for part in parts for stored in part.stored] == [2, 1, 1]
        blocks.changed(went(b"b"))
        assert await anext(subscription) == went(b"b")
        blocks.engine_ended()
        assert await anext(subscription) == BlockChanges(anew=True)

    asyncio.run(body())


def test_a_reader_who_is_too_slow_is_told_everything_anew(blocks, monkeypatch):
    monkeypatch.setattr(published_blocks, "_MOST_WAITING", 3)

    async def body():
        subscription = blocks.subscribe()
        for number in range(9):
            blocks.changed(came(bytes([number])))
            assert len(subscription._waiting) <= 3
        blocks.changed(went(b"\0"))
        known = {(tier, name) for tier, name, _ in blocks.index.contents()}
        assert await followed(subscription, len(subscription._waiting)) == known

    asyncio.run(body())


async def read_lines(client, changes):
    """What the stream sends until its reader has had a line for each of these changes, and leaves."""
    lines, read = [], asyncio.Event()

    async def receive():
        await read.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if message["type"] == "http.response.body":
            lines.append(json.loads(message["body"]))
            if len(lines) > len(changes):
                read.set()
            else:
                client.published.blocks.changed(changes[len(lines) - 1])

    await BlockStream(client)({"type": "http"}, receive, send)
    return lines


def test_a_stream_is_json_lines_and_ends_with_its_reader():
    async def body():
        server = Server()
        lines = await read_lines(server.engine, [came(b"a", b"b"), went(b"a", tier="host")])
        first, second, third = lines
        assert first == {
            "sequence": 0,
            "anew": True,
            "fingerprint": server.engine.status.info.kv_fingerprint,
            "block_size": server.engine.status.info.block_size,
            "stored": [],
            "removed": [],
        }
        assert second["stored"][0] == {"name": "61", "parent": None, "tokens": 32, "tier": "device"}
        assert second["sequence"] == 1 and not second["anew"] and len(second["stored"]) == 2
        assert third["removed"] == [{"name": "61", "tier": "host"}]
        assert not server.engine.published.blocks.wanted

    run_scripted(body)


def test_only_operators_may_read_them():
    async def body():
        server = Server(api_key=["a", "b"], key_names=["ops", "shop"], admin_keys=["ops"])
        server.client.headers["Authorization"] = "Bearer b"
        refused = await server.client.get("/v1/engines/engine/blocks")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden_key")
        server.client.headers["Authorization"] = "Bearer a"
        assert (await server.client.get("/v1/engines/nobody/blocks")).status_code == 404

    run_scripted(body)
