"""The keys of a running server: SIGHUP, looks, writes, and what is not there where nothing asks for it."""

import asyncio
import os
import signal
import sqlite3
import threading

import pytest

from configs.settings import Settings
from server import keys_in_use
from server.keys.usage import Use
from server.keys.watch import WatchedKeyFile
from server.keys_in_use import KeysInUse
from server.telemetry.metrics import Metrics
from tests.server.api.keyed import text_of


def test_without_a_file_and_without_accounts_there_is_nothing_to_do():
    before = threading.active_count()
    keys = KeysInUse(Settings(api_key=["a"]), None, Metrics())
    assert keys.accounts is None and not keys.changes and threading.active_count() == before
    asyncio.run(keys.close())


@pytest.mark.processes
def test_sighup_reads_the_file_and_what_was_used_is_written_soon_and_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(keys_in_use, "_LOOK_SECONDS", 0.001)
    path, use = tmp_path / "keys.yaml", tmp_path / "use.db"
    path.write_text(text_of(ann={}))
    settings = Settings(api_keys=str(path), usage_db=str(use))

    def written():
        with sqlite3.connect(use) as database:
            return dict(database.execute("SELECT key, requests FROM usage"))

    async def body():
        keys = KeysInUse(settings, WatchedKeyFile(str(path)), Metrics())
        loop = asyncio.get_running_loop()
        keys.handle_signal(loop)
        running = asyncio.create_task(keys.run())
        try:
            path.write_text(text_of(ann={}, ben={}))
            os.kill(os.getpid(), signal.SIGHUP)
            while keys.ring.of_key("ben", "ben") is None:
                await asyncio.sleep(0.001)
            keys.accounts.book.add("ben", "m", Use(requests=1))
            while written() != {"ben": 1}:
                await asyncio.sleep(0.01)
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            running.cancel()
        keys.accounts.book.add("ann", "m", Use(requests=2))
        await keys.close()

    asyncio.run(asyncio.wait_for(body(), 60))
    assert written() == {"ann": 2, "ben": 1}
