"""A file of keys that changes: taken up when it is whole, at once when asked, and never when it is broken."""

import asyncio
import hashlib

import pytest

from server.keys import watch
from server.keys.key_file import KeyFileError
from server.keys.watch import WatchedKeyFile


def text(*names):
    keys = [f"- name: {name}\n  hash: sha256:{hashlib.sha256(name.encode()).hexdigest()}\n" for name in names]
    return "keys:\n" + "".join(keys) if keys else "keys: []\n"


class Watched:
    def __init__(self, path, *names):
        self.path, self.taken, self.refused = path, [], 0
        path.write_text(text(*names))
        self.file = WatchedKeyFile(str(path), {"key1"})
        self.file.follow(lambda found: self.taken.append(self.names(found)), self.refuse)

    def refuse(self):
        self.refused += 1

    @staticmethod
    def names(found):
        return [entry.name for entry in found.entries]

    def looks(self, times=2):
        async def body():
            for _ in range(times):
                await self.file.look()

        asyncio.run(body())


def test_a_change_is_taken_up_once_it_has_stayed_for_a_look(tmp_path, caplog):
    caplog.set_level("INFO")
    watched = Watched(tmp_path / "keys.yaml", "a", "b")
    watched.looks(3)
    assert not watched.taken
    watched.path.write_text(text("a"))  # as an editor leaves it halfway
    watched.looks(1)
    watched.path.write_text(text("a", "b", "c"))
    watched.looks(1)
    assert not watched.taken, "nobody lost a key meanwhile"
    watched.looks(3)
    assert watched.taken == [["a", "b", "c"]] and "3 keys, 1 new (c)" in caplog.text


ODD = [
    f"keys:\n- name: a\n  admin: {odd}\n"
    for odd in ("!!bool maybe", "!!int ''", "!!timestamp x", "!!binary ä", "&a [*a]")
]


@pytest.mark.parametrize("broken", ["keys:", text("a", "a"), text("key1"), "", None, *ODD])
def test_a_broken_file_leaves_the_keys_as_they_were_and_says_so_once(broken, tmp_path, caplog):
    watched = Watched(tmp_path / "keys.yaml", "a")
    if broken is None:
        watched.path.unlink()
    else:
        watched.path.write_text(broken)
    watched.looks(5)
    assert not watched.taken and watched.refused == 1 and watched.names(watched.file.current) == ["a"]
    assert caplog.text.count("the keys read before stay in use") == 1
    watched.path.write_text(text("b"))
    watched.looks()
    assert watched.taken == [["b"]]


def test_who_asks_has_it_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LOOK_SECONDS", 600.0)
    watched = Watched(tmp_path / "keys.yaml", "a")

    async def body():
        watching = asyncio.create_task(watched.file.watch())
        await asyncio.sleep(0)
        for names in (("b",), ("c", "d")):
            watched.path.write_text(text(*names))
            watched.file.look_now()
            while not watched.taken or watched.taken[-1] != list(names):
                await asyncio.sleep(0.001)
        watching.cancel()

    asyncio.run(asyncio.wait_for(body(), 60))


def test_what_nobody_foresaw_ends_no_watch(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(watch, "LOOK_SECONDS", 600.0)
    watched, times = Watched(tmp_path / "keys.yaml", "a"), []

    def fails(*_):
        times.append(1)
        raise ZeroDivisionError("a defect")

    async def body():
        watching = asyncio.create_task(watched.file.watch())
        await asyncio.sleep(0)
        for made in (lambda: monkeypatch.setattr(watch, "read_key_file", fails), monkeypatch.undo):
            made()
            watched.file.follow(fails, watched.refuse)
            seen = len(times)
            watched.file.look_now()
            while len(times) == seen:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.001)
        assert not watching.done() and watched.refused == 1
        watching.cancel()

    asyncio.run(asyncio.wait_for(body(), 60))
    assert caplog.text.count("ZeroDivisionError: a defect") == 2


def test_a_server_does_not_start_with_a_broken_one(tmp_path):
    (tmp_path / "keys.yaml").write_text("keys:")
    with pytest.raises(KeyFileError):
        WatchedKeyFile(str(tmp_path / "keys.yaml"))
