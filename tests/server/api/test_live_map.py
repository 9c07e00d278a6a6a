"""`GET /v1/map`: engines draw while somebody reads, once for all readers, and again when they start again."""

import asyncio
import json

import pytest

from scheduler.types.engine_map import BlockCells, EngineMap
from scheduler.types.messages import PublishMap
from server.api import live_map
from server.api.live_map import MapStream
from server.engines.published.maps import PublishedMap
from tests.server.api.scripted import Server, run


def drawn(used=0):
    cells = BlockCells(blocks=8, per_cell=1, runs=[8, 0, 0, 0, 0, 0], owners=[[0]])
    return EngineMap(
        at=1.5, block_size=32, used=used, cached=0, free=8 - used, running=0, waiting=0, cells=cells, requests=[], tiers=[]
    )  # fmt: skip


def test_an_engine_draws_once_for_all_who_watch_and_not_for_nobody():
    sent, news = [], []
    published = PublishedMap(sent.append)
    published.engine_ready()
    published.drawn(drawn())
    assert not sent and published.newest is None
    first, second = lambda: news.append(1), lambda: news.append(2)
    published.watch(first)
    published.watch(second)
    assert sent == [PublishMap()] and published.wanted
    published.drawn(drawn())
    assert sorted(news) == [1, 2] and json.loads(published.newest)["at"] == 1.5
    published.engine_ended()
    assert published.newest is None and len(news) == 4
    published.engine_ready()
    assert sent == [PublishMap(), PublishMap()], "the new one is asked, too"
    published.unwatch(first)
    assert published.wanted and len(sent) == 2
    published.unwatch(second)
    assert sent[2:] == [PublishMap(publish=False)] and not published.wanted
    published.drawn(drawn())
    assert published.newest is None


class Reader:
    """One who reads the stream, line by line, and leaves when told to."""

    def __init__(self, server):
        self.lines: asyncio.Queue[dict] = asyncio.Queue()
        self.may_read, self.leaves = asyncio.Event(), asyncio.Event()
        self.may_read.set()
        self.now = 0.0
        stream = MapStream(list(server.context.engines), server.context.drain.over)
        self.ended = asyncio.create_task(stream({}, self.receive, self.send))

    async def receive(self):
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        await self.may_read.wait()
        if message["type"] == "http.response.body":
            for line in message["body"].splitlines():
                self.lines.put_nowait(json.loads(line))

    async def line(self):
        line = await asyncio.wait_for(self.lines.get(), 10)
        assert self.now <= line["now"]
        self.now = line.pop("now")
        return line

    async def leave(self):
        self.leaves.set()
        await self.ended


def test_a_stream_has_each_map_and_ends_with_its_reader():
    async def body():
        server = Server()
        engine, published = server.incarnations, server.engine.published.map
        reader = Reader(server)
        assert await reader.line() == {
            "engine": "engine", "role": "mixed", "state": "ready", "unchanged": False, "map": None
        }  # fmt: skip
        for used in (1, 2):
            engine.handle(drawn(used))
            assert (await reader.line())["map"]["used"] == used
        other = Reader(server)
        assert (await other.line())["map"]["used"] == 2, "at once, though nothing has changed"
        await other.leave()
        assert published.wanted
        engine.detach("it is killed")
        ended = await reader.line()
        assert (ended["state"], ended["map"], ended["unchanged"]) == ("starting", None, False)
        await reader.leave()
        assert not published.wanted

    run(body)


def test_a_stream_ends_with_the_server():
    async def body():
        server = Server()
        reader = Reader(server)
        await reader.line()
        server.context.drain.over.set()
        await asyncio.wait_for(reader.ended, 5)
        assert not server.engine.published.map.wanted

    run(body)


def test_one_who_reads_slowly_gets_the_newest_map():
    async def body():
        server = Server()
        reader = Reader(server)
        await reader.line()
        reader.may_read.clear()
        for used in range(8):
            server.incarnations.handle(drawn(used))
            await asyncio.sleep(0)
        reader.may_read.set()
        seen = [(await reader.line())["map"]["used"]]
        while seen[-1] != 7:
            seen.append((await reader.line())["map"]["used"])
        assert len(seen) <= 2
        await reader.leave()

    run(body)


def test_while_nothing_changes_lines_say_how_engines_are(monkeypatch):
    monkeypatch.setattr(live_map, "_PULSE_SECONDS", 0.001)

    async def body():
        server = Server()
        reader = Reader(server)
        server.incarnations.handle(drawn())
        lines = [await reader.line() for _ in range(4)]
        assert lines[-1] == {"engine": "engine", "role": "mixed", "state": "ready", "unchanged": True, "map": None}
        server.engine.status.draining = True
        while (await reader.line())["state"] != "drained":
            pass
        await reader.leave()

    run(body)


@pytest.mark.parametrize(("key", "status"), [(None, 401), ("wrong", 401), ("b", 403)])
def test_only_operators_may_watch(key, status):
    async def body():
        server = Server(api_key=["a", "b"], key_names=["ops", "shop"], admin_keys=["ops"])
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        refused = await server.client.get("/v1/map", headers=headers)
        assert refused.status_code == status
        assert not server.engine.published.map.wanted

    run(body)
